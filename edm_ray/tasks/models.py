"""Models and data sets in and out, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edm_ray.config import presets
from edm_ray.config.codec import PIXELS
from edm_ray.config.shape import DataShape
from edm_ray.config.training import TrainingConfig
from edm_ray.data import write as data_write
from edm_ray.data.manifest import DataSet
from edm_ray.diffusion.preconditioning import Preconditioned
from edm_ray.errors import InputError
from edm_ray.models import directory
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import load_model
from edm_ray.models.interop import import_pickle
from edm_ray.networks.build import config_of
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest


def save_model(
    out: str,
    denoiser: Preconditioned | ModelDenoiser,
    *,
    shape: tuple[int, int, int] | None = None,
    class_names: Sequence[str] = (),
    **about: Any,
) -> str:
    """Commit a model directory: weights as safetensors, config.json, a model card. Returns its place.

    denoiser: `EDM(network)` (VP, VE, IDDPM) around any network, or what `load_model` gave. shape: (C, H, W) of its
    images, where a network of your own does not say img_channels and img_resolution. about: plain values for the card.
    """
    module = denoiser.module if isinstance(denoiser, ModelDenoiser) else denoiser
    codec = denoiser.codec if isinstance(denoiser, ModelDenoiser) else PIXELS
    if class_names:
        about["class_names"] = list(class_names)
    place = uris.absolute(out)
    directory.save_model(place, config_of(module, shape), module.state_dict(), about, codec)
    return place


def import_model(source: str, out: str, *, key: str = "ema", sha256: str | None = None) -> ModelDenoiser:
    """An official network file or training state becomes a model directory; nothing in it is executed.

    key: which network of the file. sha256: what the file's must be. Raises InputError for what is no such file, and
    where OUT holds something already.
    """
    place = uris.absolute(out)
    if read_manifest(place) is not None:
        raise InputError(f"{out}: holds something already; choose another OUT")
    imported = import_pickle(source, key, sha256)
    directory.save_model(place, imported.config, imported.state, imported.facts)
    return load_model(place)


def preset(name: str, data: DataSet | DataShape) -> TrainingConfig:
    """A named recipe for data of this shape; change it with `dataclasses.replace`. Raises InputError naming the nearest
    preset."""
    return presets.preset(name, data.shape if isinstance(data, DataSet) else data)


def write_dataset(
    images: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor | None,
    out: str,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "images",
    num_shards: int = 4,
) -> DataSet:
    """A data set of images that lie in memory: uint8 [N, C, R, R], C = 1 or 3; labels [N], or None without classes."""
    pixels = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    numbers = np.zeros(len(pixels), np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    names = class_names
    if names is None:
        names = [] if labels is None else [str(i) for i in range(int(numbers.max(initial=-1)) + 1)]
    return data_write.write_dataset(
        uris.absolute(out), pixels, numbers, names, name=name, split="train", num_shards=num_shards
    )
