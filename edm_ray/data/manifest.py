"""What a data set says of itself: rows, shards, shape, classes, and the pixel statistics behind sigma_data."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.load import validate
from edm_ray.config.shape import DataShape
from edm_ray.data.format import ENCODINGS
from edm_ray.errors import InputError, IntegrityError, shortened
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST, check_keys, manifest_hash, nested, read_manifest

KIND = "edm_ray data set"
MAX_RESOLUTION, MAX_CHANNELS = 8192, 1024

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


def open_dataset(uri: str, *, rows_agree: bool = True) -> DataSet:
    """Read a data set's manifest. Raises InputError when there is none, or it is of something else.

    rows_agree: refuse shards whose rows do not add up (`edm-ray inspect` names the shards that are wrong instead)."""
    manifest = read_manifest(uri)
    if manifest is None:
        found = uris.list_names(uri)
        if (found and MANIFEST not in found) or uris.file_size(uri) is not None:
            refuse_source(uri, found)
        if inside := nested(uri, KIND):
            several = "several: give one of" if len(inside) > 1 else "one: give"
            raise InputError(f"{uri}: no data set itself; it holds {several} {', '.join(inside)}")
        if found:
            raise InputError(
                f"{uri}: no data set (found {', '.join(found[:4])} there, but no {MANIFEST}); give what `edm-ray "
                "prepare` wrote"
            )
        raise InputError(f"{uri}: no data set (nothing is there); make one with: edm-ray prepare SOURCE {uri}")
    path = uris.join(uri, MANIFEST)
    if manifest.get("kind") != KIND:
        raise InputError(f"{uri}: holds {shortened(manifest.get('kind', 'something else'))}, not a data set")
    fields = {field.name for field in dataclasses.fields(DataSet)} - {"uri", "hash"}
    check_keys(manifest, path, fields)
    known = {key: value for key, value in manifest.items() if key in fields}
    content = {key: value for key, value in manifest.items() if key not in PROVENANCE}
    dataset = validate(DataSet, {**known, "uri": uri, "hash": manifest_hash(content)}, path)
    _check(dataset, path, rows_agree)
    return dataset


def refuse_source(uri: str, found: Sequence[str]) -> None:
    """Raises InputError for pictures that were not prepared: the data set goes to a place of its own. (Nothing is
    raised for a folder of data sets.)"""
    if any(uris.exists(uris.join(uri, name, MANIFEST)) for name in found):
        return
    name = uri.rstrip("/").rsplit("/", 1)[-1].partition(".")[0] or "images"
    first = f" (found {', '.join(found[:4])} there)" if found else ""
    raise InputError(
        f"{uri}: no data set{first}; if these are pictures: edm-ray prepare {shlex.quote(uri)} "
        f"data/{shlex.quote(name)}, and give data/{name}"
    )


def _check(dataset: DataSet, path: str, rows_agree: bool) -> None:
    """Numbers that agree with one another, before anything of that size is made."""
    names, starts = [shard.name for shard in dataset.shards], [shard.first_row for shard in dataset.shards]
    firsts = [0, *itertools.accumulate(shard.rows for shard in dataset.shards)]
    classes, channels = max(1, len(dataset.class_names)), dataset.channels
    counts = dataset.class_counts
    checks = {
        "files": sorted(names) == sorted(dataset.files),
        "shards": all(shard.rows > 0 and shard.first_row >= 0 for shard in dataset.shards),
        "rows": dataset.rows > 0 and (not rows_agree or firsts == [*starts, dataset.rows]),
        "resolution": 0 < dataset.resolution <= MAX_RESOLUTION,
        "channels": 0 < channels <= MAX_CHANNELS,
        "mean": len(dataset.mean) == channels,
        "std": len(dataset.std) == channels,
        "encoding": dataset.encoding in ENCODINGS,
        "class_counts": not counts or (len(counts) == classes and min(counts) >= 0 and sum(counts) == dataset.rows),
        "codec": dataset.codec.is_pixels or len(dataset.codec.mean) == channels,
    }
    if wrong := [name for name, fits in checks.items() if not fits]:
        raise IntegrityError(f"{path}: {wrong[0]} does not fit the rest: damaged or made by hand; prepare it again")
