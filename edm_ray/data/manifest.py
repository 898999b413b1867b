"""What a data set says of itself: rows, shards, shape, classes, and the pixel statistics behind sigma_data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.load import validate
from edm_ray.config.shape import DataShape
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST, manifest_hash, read_manifest

KIND = "edm_ray data set"


PROVENANCE = ("source",)
"""Keys of the manifest that say where the data came from, not what they are: outside the hash."""


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    rows: int
    offset: int
    """First byte of the row group in the shard."""
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file; its size and sha256 are in the manifest's ``files`` table."""

    name: str
    first_row: int
    rows: int
    row_groups: tuple[RowGroup, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What `edm-ray prepare --on-error skip` left out: how many, and the first of them with file and reason."""

    count: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A committed data set: where it is, what is in it."""

    uri: str
    name: str
    rows: int
    resolution: int
    channels: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of what the denoiser sees: pixels in [-1, 1], or scaled latents (0)."""
    std: tuple[float, ...]
    """Per channel, likewise: what sigma_data should be near."""
    shards: tuple[Shard, ...]
    hash: str
    """sha256 of the manifest: the identity of the content, wherever it lies."""
    files: dict[str, dict[str, Any]]
    encoding: str = "png"
    """How pictures lie in the shards: "png" or "raw" (`edm_ray.data.format`); `read_shard` reads both."""
    codec: Codec = PIXELS
    """What a row is: pixels, or latents and how they are scaled."""
    split: str = "train"
    class_counts: tuple[int, ...] = ()
    """Rows of each class; one number without classes. Empty in data sets of older versions."""
    skipped: Skipped = Skipped()
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What it was prepared from, and how. Not part of the hash."""

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Of a decoded row as bytes: (C, R, R), the last axis times the bytes of a number for latents."""
        return self.channels, self.resolution, self.resolution * self.codec.itemsize

    @property
    def empty_classes(self) -> tuple[int, ...]:
        """Classes of which there is no row: a model is not trained for them, and they are not drawn."""
        return tuple(i for i in range(len(self.class_names)) if self.class_counts and self.class_counts[i] == 0)

    @property
    def shape(self) -> DataShape:
        return DataShape(resolution=self.resolution, channels=self.channels, num_classes=len(self.class_names))


def open_dataset(uri: str) -> DataSet:
    """Read a data set's manifest. Raises InputError when there is none, or it is of something else."""
    manifest = read_manifest(uri)
    if manifest is None:
        found = uris.list_names(uri)
        hint = f"found {', '.join(found[:4])} there, but no {MANIFEST}" if found else "nothing is there"
        if found and any(uris.exists(uris.join(uri, name, MANIFEST)) for name in found):
            nested = [name for name in found if uris.exists(uris.join(uri, name, MANIFEST))]
            hint = f"it holds several: give one of {', '.join(uris.join(uri, name) for name in nested)}"
        raise InputError(f"{uri}: no data set ({hint}); make one with: edm-ray prepare SOURCE {uri}")
    if manifest.get("kind") != KIND:
        raise InputError(f"{uri}: holds {manifest.get('kind', 'something else')!r}, not a data set")
    fields = {field.name for field in dataclasses.fields(DataSet)}
    known = {key: value for key, value in manifest.items() if key in fields}
    content = {key: value for key, value in manifest.items() if key not in PROVENANCE}
    return validate(DataSet, {**known, "uri": uri, "hash": manifest_hash(content)}, uris.join(uri, MANIFEST))
