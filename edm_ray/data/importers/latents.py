"""Latents made by somebody's encoder: ``.npz`` (``latents``, ``labels``) or one ``.npy`` array, float [N, C, R, R]."""

from __future__ import annotations

from typing import Any

import numpy as np

from edm_ray.data.importers.files import open_local
from edm_ray.data.importers.npz import IMAGES, Npz, array_rows
from edm_ray.data.importers.source import Record, RecordError, Source, SourceSpec, fingerprint
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import sha256


class LatentsNpz(Npz):
    names = ("latents", "latent", "z", *IMAGES)

    @property
    def dtype(self) -> str:
        return str(self.images.dtype.newbyteorder("="))

    def _layout(self, images: Any, name: str) -> None:
        check_layout(images, f"{self.where}: {name}")

    def record(self, index: int) -> Record:
        name = f"{self.image_name} row {index}"
        return Record(name, int(self.labels[index]), finite(self.images[index], name))


class LatentsNpy:
    """One array; there is no place for labels."""

    notes: tuple[str, ...] = ("a .npy file has no labels: no classes (an .npz may have `labels`)",)
    class_names: tuple[str, ...] = ()

    def __init__(self, spec: SourceSpec) -> None:
        handle = open_local(spec.uri)
        self.latents = array_rows(handle, spec.uri)
        check_layout(self.latents, spec.uri)
        self.labels = np.zeros(len(self.latents), np.int64)
        # There is no checksum in the file, and all of it is not read for one: its form, its first row and its last.
        ends = [sha256(self.latents[index].tobytes()) for index in (0, len(self.latents) - 1)]
        self.fingerprint = fingerprint("npy", self.latents.shape, str(self.latents.dtype), ends)

    @property
    def dtype(self) -> str:
        return str(self.latents.dtype.newbyteorder("="))

    def __len__(self) -> int:
        return len(self.latents)

    def record(self, index: int) -> Record:
        return Record(f"row {index}", 0, finite(self.latents[index], f"row {index}"))


def latents_source(spec: SourceSpec) -> Source:
    if uris.is_folder(spec.uri) or not spec.uri.lower().endswith((".npz", ".npy")):
        raise InputError(f"{spec.uri}: latents are read from .npz or .npy files, float [N, C, R, R]")
    return LatentsNpy(spec) if spec.uri.lower().endswith(".npy") else LatentsNpz(spec)


def check_layout(latents: Any, what: str) -> None:
    """float16 or float32 [N, C, R, R]; anything else is an InputError."""
    shape, dtype = latents.shape, latents.dtype
    if dtype.kind != "f" or dtype.itemsize not in (2, 4) or len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
        raise InputError(
            f"{what} is {dtype} {shape}; latents must be float16 or float32 [N, C, R, R], channels first and square"
            + ("; a small last axis looks like channels last: save array.transpose(0, 3, 1, 2)" * _channels_last(shape))
        )


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def finite(latent: np.ndarray, name: str) -> np.ndarray:
    """Little-endian, or RecordError when a value is NaN or infinite."""
    if not np.isfinite(latent).all():
        place = tuple(np.argwhere(~np.isfinite(latent))[0].tolist())
        raise RecordError(f"{name}: {latent[place]} at channel, row, column {place}; latents must be finite numbers")
    return np.ascontiguousarray(latent, latent.dtype.newbyteorder("<"))
