"""Model directory: ``config.json`` + ``model.safetensors`` (+ a README), the one thing every later command takes."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.load import to_flat, validate
from edm_ray.config.network import OwnNetwork
from edm_ray.data.decoders import decoder_version
from edm_ray.diffusion.preconditioning import Preconditioned
from edm_ray.errors import InputError, IntegrityError, nearest, shortened
from edm_ray.models.card import PICTURE, model_card
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.weights import misfit, tensors_of, weights_bytes
from edm_ray.networks.build import build_denoiser, on_device
from edm_ray.storage import uris
from edm_ray.storage.commit import (
    NEWER,
    canonical_json,
    commit,
    nested,
    open_manifest,
    read_file,
    read_manifest,
    sha256,
)
from edm_ray.storage.documents import SMALL_BYTES, load_json
from edm_ray.storage.versioned import FORMAT, check_format

KIND = "edm_ray model"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FOREIGN = (".pkl", ".pt", ".pth", ".ckpt", ".npz", ".safetensors", ".bin")
CONFIG_KEYS = ("format", "denoiser", "about", "codec")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model directory that has been read and checked; `denoiser()` builds D from it."""

    uri: str
    config: DenoiserConfig
    weights: bytes
    """model.safetensors, as stored."""
    about: dict[str, Any]
    """Where it comes from: data set, images seen, preset, class names."""
    codec: Codec = PIXELS
    """What its samples are, and how they become pictures."""
    guide: Model | None = None
    """The model that guides it, where sampler settings say so (autoguidance)."""
    network: torch.nn.Module | None = None
    """The user's own module, where the configuration says kind "own"; the weights are loaded into a copy."""

    @property
    def hash(self) -> str:
        """Identity of what it computes: configuration and weights; for latents also codec and decoder, so that a chunk
        of features of decoded pictures is of that decoder. Raises InputError when the decoder is not installed."""
        parts = [dataclasses.asdict(self.config), sha256(self.weights)]
        if not self.codec.is_pixels:
            parts += [dataclasses.asdict(self.codec), decoder_version(self.codec.decoder)]
        if self.empty_classes:
            parts.append({"empty_classes": list(self.empty_classes)})
        if self.guide is not None:
            parts.append({"guide": self.guide.hash})
        text = canonical_json(parts)
        return sha256(text.encode())

    @property
    def empty_classes(self) -> tuple[int, ...]:
        """Classes without a picture in the data that it was trained on."""
        return tuple(self.about.get("empty_classes", ()))

    @property
    def class_names(self) -> list[str]:
        """Of every class; numbers where the model does not say."""
        classes, names = self.config.network.label_dim, self.about.get("class_names") or []
        return [*names] if len(names) == classes else [str(i) for i in range(classes)]

    def denoiser(self, device: str = "cpu") -> ModelDenoiser:
        """D in evaluation mode, with its guide if there is one."""
        state = tensors_of(self.weights, uris.join(self.uri, WEIGHTS))
        module = on_device(network_with(self.config, state, self.uri, self.network), torch.device(device))
        guide = None if self.guide is None else self.guide.denoiser(device)
        denoiser = ModelDenoiser(module, self.config.network, self.codec, guide, self, self.empty_classes)
        return denoiser if self.network is not None else denoiser.record()

    def with_guide(self, guide: Model) -> Model:
        """Raises InputError for a guide of other images or classes."""
        mine, its = self.config.network, guide.config.network
        shapes = [(n.img_resolution, n.img_resolution, n.img_channels) for n in (its, mine)]
        if shapes[0] != shapes[1] or self.codec != guide.codec:
            raise InputError(f"{guide.uri}: makes {shapes[0]}, {self.uri} makes {shapes[1]}; a guide makes the same")
        if its.label_dim not in (0, mine.label_dim):
            raise InputError(
                f"{guide.uri}: {its.label_dim} classes, {self.uri}: {mine.label_dim}; a guide has as many, or none"
            )
        return dataclasses.replace(self, guide=guide)


def network_with(
    config: DenoiserConfig, state: dict[str, torch.Tensor], where: str, network: torch.nn.Module | None = None
) -> Preconditioned:
    """The preconditioned network with these tensors, copied, in evaluation mode. network: the user's own, where the
    configuration says so. Raises IntegrityError when the tensors are not the network's."""
    module = build_denoiser(config, network=copy.deepcopy(network))
    if wrong := misfit(module.state_dict(), state):
        raise IntegrityError(f"{where}: {wrong}")
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def save_model(
    uri: str,
    config: DenoiserConfig,
    state: dict[str, torch.Tensor],
    about: dict[str, Any],
    codec: Codec = PIXELS,
    picture: bytes | None = None,
) -> None:
    """Commit a model directory; the same arguments give the same bytes. picture: PNG of samples, for the card."""
    content: dict[str, Any] = {"format": FORMAT, "denoiser": to_flat(config), "about": about}
    if not codec.is_pixels:
        content["codec"] = dataclasses.asdict(codec)
    text = json.dumps(content, indent=1, sort_keys=True)
    weights = weights_bytes(state, {"edm_ray.denoiser": canonical_json(dataclasses.asdict(config))})
    card = model_card(config, about, pictured=picture is not None)
    files = [(CONFIG, text.encode()), (WEIGHTS, weights), (CARD, card.encode())]
    files += [] if picture is None else [(PICTURE, picture)]
    commit(uri, files, replace=True, kind=KIND)  # a longer run has a newer model


def require_unchanged(model: Model) -> None:
    """Before what was found of a model is written beside it. Raises InputError when another one is there by now."""
    if open_model(model.uri, network=model.network).hash != dataclasses.replace(model, guide=None).hash:
        raise InputError(
            f"{model.uri}: holds another model than the one that was used; what was found is of the one before, and is "
            "not written there"
        )


def add_metrics(measured: Model, metrics: Mapping[str, Any], picture: bytes | None = None) -> None:
    """Write measurements of a model into its directory (config.json, model card), over older ones of the same names,
    and a picture of samples. What it computes, and so its hash, stays. Raises InputError when the directory holds
    another model by now."""
    require_unchanged(measured)
    uri = measured.uri
    model = open_model(uri)
    about = {**model.about, "metrics": {**model.about.get("metrics", {}), **metrics}}
    if picture is None and (manifest := read_manifest(uri)) is not None and PICTURE in manifest["files"]:
        picture = read_file(uri, PICTURE, manifest)
    save_model(uri, model.config, tensors_of(model.weights, uris.join(uri, WEIGHTS)), about, model.codec, picture)


def open_model(uri: str, guide: str | None = None, network: torch.nn.Module | None = None) -> Model:
    """Read and check a model directory, and that of a model to guide it. network: the user's own module, where the
    model was trained with one. Raises InputError when there is none."""
    if guide is not None:
        return open_model(uri, network=network).with_guide(open_model(guide))
    manifest = open_manifest(uri, KIND, (), (CONFIG, WEIGHTS, CARD, PICTURE))
    if manifest is None and read_manifest(uris.join(uri, "model")) is not None:
        raise InputError(f"{uri}: is a training run, not a model; give {uris.join(uri, 'model')}")
    if manifest is None:
        if uri.lower().endswith(FOREIGN):
            what = "a file of another project; " if uris.file_size(uri) is not None else ""
            raise InputError(f"{uri}: {what}no model directory; make one of a .pkl or .pt: edm-ray import {uri} MODEL")
        run = uri.rstrip("/").rpartition("/")[0]
        if uri.rstrip("/").endswith("/model") and uris.exists(uris.join(run, "run.json")):
            raise InputError(
                f"{uri}: the run is not finished; `edm-ray export {run}` makes a model of its last checkpoint"
            )
        runs = [uris.join(uri, name) for name in uris.list_names(uri)]
        if inside := [*nested(uri, KIND), *(model for run in runs for model in nested(run, KIND))]:
            raise InputError(f"{uri}: no model itself; it holds {', '.join(inside[:4])}: give one")
        raise InputError(f"{uri}: no model directory there; `edm-ray train` writes one to RUN/model when it is done")
    where = uris.join(uri, CONFIG)
    config, codec, about = read_config(read_file(uri, CONFIG, manifest), where)
    weights = read_file(uri, WEIGHTS, manifest)
    if network is None:
        check_size(config, len(weights), uri)
    return Model(uri=uri, config=config, weights=weights, about=about, codec=codec, network=network)


def read_config(content: bytes, where: str) -> tuple[DenoiserConfig, Codec, dict[str, Any]]:
    """A ``config.json``: what the network is, what its samples are, where it comes from. Raises InputError for what is
    damaged, and for a key that this version does not know."""
    table = load_json(content, where, SMALL_BYTES)
    if not isinstance(table, dict):
        raise IntegrityError(f"{where}: a mapping is needed, got {shortened(table)}")
    check_format(table.get("format"), where)
    if unknown := sorted(set(table) - set(CONFIG_KEYS)):
        close = nearest(unknown[0], CONFIG_KEYS)
        raise InputError(f"{where}: unknown key {shortened(unknown[0])}{close}; {NEWER}")
    for name in ("denoiser", "about"):
        if not isinstance(table.get(name), dict):
            raise IntegrityError(f"{where}: {name} is missing or no mapping, got {shortened(table.get(name))}")
    config = validate(DenoiserConfig, table["denoiser"], where)
    codec = validate(Codec, table.get("codec", {}), where)
    if not codec.is_pixels and len(codec.mean) != config.network.img_channels:
        raise IntegrityError(
            f"{where}: its codec has {len(codec.mean)} channels, its network {config.network.img_channels}"
        )
    _check_about(table["about"], config.network.label_dim, where)
    return config, codec, table["about"]


def _check_about(about: dict[str, Any], classes: int, where: str) -> None:
    """What is used of it must be of its type; the rest is only shown."""
    names, empty = about.get("class_names", []), about.get("empty_classes", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise IntegrityError(f"{where}: about.class_names={shortened(names)} is not allowed: a list of texts")
    numbers = isinstance(empty, list) and all(type(number) is int and 0 <= number < classes for number in empty)
    if not numbers or len(set(empty)) != len(empty) or (empty and len(empty) >= classes):
        raise IntegrityError(
            f"{where}: about.empty_classes={shortened(empty)} is not allowed: some of {classes} classes"
        )
    if not isinstance(about.get("metrics", {}), dict):
        raise IntegrityError(f"{where}: about.metrics={shortened(about['metrics'])} is not allowed: a mapping")


def check_size(config: DenoiserConfig, size: int, where: str) -> None:
    """Refuse a configuration whose network does not fit into a file of so many bytes, before it is built.

    Networks of a few kinds are laid out without memory first (torch's meta device), so a configuration that asks for
    terabytes costs nothing.
    """
    if isinstance(config.network, OwnNetwork):
        return
    with torch.device("meta"):
        state = build_denoiser(config).state_dict()
    needed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if needed > size:
        raise IntegrityError(
            f"{where}: {CONFIG} describes a network of {needed:,} bytes, {WEIGHTS} has {size:,}: the two do not belong "
            "together"
        )


def load_model(
    uri: str, device: str = "cpu", guide: str | None = None, network: torch.nn.Module | None = None
) -> ModelDenoiser:
    """Model directory (local or s3://) -> D in evaluation mode.

    guide: directory of the model that guides it. network: a module of the class that the model was trained with, where
    that is your own. Raises InputError when there is no model.
    """
    return open_model(uri, guide, network).denoiser(device)
