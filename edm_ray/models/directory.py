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
from edm_ray.data.decoders import decoder_version
from edm_ray.diffusion.preconditioning import Preconditioned
from edm_ray.errors import InputError, IntegrityError
from edm_ray.models.card import model_card
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.weights import misfit, tensors_of, weights_bytes
from edm_ray.networks.build import build_denoiser, on_device
from edm_ray.storage import uris
from edm_ray.storage.commit import canonical_json, commit, read_file, read_manifest, sha256
from edm_ray.storage.versioned import FORMAT, from_text

KIND = "edm_ray model"


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
        if self.guide is not None:
            parts.append({"guide": self.guide.hash})
        text = canonical_json(parts)
        return sha256(text.encode())

    def denoiser(self, device: str = "cpu") -> ModelDenoiser:
        """D in evaluation mode, with its guide if there is one."""
        state = tensors_of(self.weights, uris.join(self.uri, "model.safetensors"))
        module = on_device(network_with(self.config, state, self.uri, self.network), torch.device(device))
        guide = None if self.guide is None else self.guide.denoiser(device)
        denoiser = ModelDenoiser(module, self.config.network, self.codec, guide, self)
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
    uri: str, config: DenoiserConfig, state: dict[str, torch.Tensor], about: dict[str, Any], codec: Codec = PIXELS
) -> None:
    """Commit a model directory; the same arguments give the same bytes."""
    content: dict[str, Any] = {"format": FORMAT, "denoiser": to_flat(config), "about": about}
    if not codec.is_pixels:
        content["codec"] = dataclasses.asdict(codec)
    text = json.dumps(content, indent=1, sort_keys=True)
    weights = weights_bytes(state, {"edm_ray.denoiser": canonical_json(dataclasses.asdict(config))})
    card = model_card(config, about)
    files = [("config.json", text.encode()), ("model.safetensors", weights), ("README.md", card.encode())]
    commit(uri, files, replace=True, kind=KIND)  # a longer run has a newer model


def add_metrics(uri: str, metrics: Mapping[str, Any]) -> None:
    """Write measurements of a model directory into it (config.json, model card), over older ones of the same names.
    What it computes, and so its hash, stays."""
    model = open_model(uri)
    about = {**model.about, "metrics": {**model.about.get("metrics", {}), **metrics}}
    save_model(uri, model.config, tensors_of(model.weights, uri), about, model.codec)


def open_model(uri: str, guide: str | None = None, network: torch.nn.Module | None = None) -> Model:
    """Read and check a model directory, and that of a model to guide it. network: the user's own module, where the
    model was trained with one. Raises InputError when there is none."""
    if guide is not None:
        return open_model(uri, network=network).with_guide(open_model(guide))
    manifest = read_manifest(uri)
    if manifest is None and read_manifest(uris.join(uri, "model")) is not None:
        raise InputError(f"{uri}: is a run, not a model; give {uris.join(uri, 'model')}")
    if manifest is None:
        raise InputError(f"{uri}: no model directory there; `edm-ray train` writes one to RUN/model when it is done")
    if manifest.get("kind") != KIND:
        raise InputError(f"{uri}: holds {manifest.get('kind', 'something else')!r}, not a model")
    path = uris.join(uri, "config.json")
    content = from_text(read_file(uri, "config.json", manifest), path, "write the model again")
    if "denoiser" not in content or not isinstance(content.get("about"), dict):
        raise IntegrityError(f"{path}: lacks denoiser or about; write the model again")
    config = validate(DenoiserConfig, content["denoiser"], uris.join(uri, "config.json"))
    codec = validate(Codec, content.get("codec", {}), uris.join(uri, "config.json"))
    if not codec.is_pixels and len(codec.mean) != config.network.img_channels:
        raise IntegrityError(
            f"{uri}: its codec has {len(codec.mean)} channels, its network {config.network.img_channels}"
        )
    weights = read_file(uri, "model.safetensors", manifest)
    return Model(uri=uri, config=config, weights=weights, about=content["about"], codec=codec, network=network)


def load_model(
    uri: str, device: str = "cpu", guide: str | None = None, network: torch.nn.Module | None = None
) -> ModelDenoiser:
    """Model directory (local or s3://) -> D in evaluation mode.

    guide: directory of the model that guides it. network: a module of the class that the model was trained with, where
    that is your own. Raises InputError when there is no model.
    """
    return open_model(uri, guide, network).denoiser(device)
