"""Write a data set: Parquet shards one at a time, the manifest last.

A shard's entry carries integer counts (histogram of levels, rows of each class), so the manifest's statistics are exact
whoever wrote the shards and in whatever order.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edm_ray.config.codec import Codec
from edm_ray.data.exact import channel_sums, mean_std
from edm_ray.data.format import Labels, Pixels, encode, row_groups, schema, write_shard
from edm_ray.data.importers.source import check_class_names
from edm_ray.data.manifest import KIND, DataSet, open_dataset
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import publish, sha256

FIRST_SKIPPED = 100
"""So many skipped records are kept by name."""
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What is known of a written shard; plain JSON values."""

    name: str
    rows: int
    """0: every record was skipped and there is no file."""
    bytes: int
    sha256: str
    row_groups: list[dict[str, int]]
    histogram: list[list[int]]
    """Pixels: level counts of each channel, C x 256."""
    sums: list[list[str]] = field(default_factory=list)
    """Latents: exact sum and sum of squares of each channel (`edm_ray.data.exact`), in hexadecimal."""
    class_counts: list[int]
    skipped: int = 0
    skipped_first: list[str]


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """What is known of latents before their statistics are."""

    dtype: str
    decoder: str
    scale: float = 0.5
    encode: str = ""
    """Made here, of pictures, by this encoder; empty: the source has latents."""


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How every row of a data set lies in its shards."""

    class_names: Sequence[str]
    shape: tuple[int, int, int]
    """(C, R, R)"""
    encoding: str
    latents: LatentOptions | None = None
    """None: pixels, uint8."""

    @property
    def dtype(self) -> str:
        return "uint8" if self.latents is None else self.latents.dtype


def shard_name(split: str, index: int, num_shards: int) -> str:
    return f"{split}-{index:05d}-of-{num_shards:05d}.parquet"


def build_shard(name: str, rows: Iterable[tuple[str, int, Pixels]], form: RowFormat) -> tuple[bytes, ShardEntry]:
    """Rows of (name, label, ``form.dtype`` [C, R, R]) -> the file's bytes and its entry. Memory: the encoded pictures.

    dtype: uint8 for pixels; float16 or float32 for latents, which are raw."""
    class_names, shape, encoding, dtype = form.class_names, form.shape, form.encoding, form.dtype
    assert dtype == "uint8" or encoding == "raw"
    pictures: list[bytes] = []
    names: list[str] = []
    labels: list[int] = []
    histogram = np.zeros((shape[0], 256), np.int64)
    for row_name, label, pixels in rows:
        assert pixels.shape == shape and pixels.dtype == dtype
        if dtype == "uint8":
            histogram += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in pixels])
        pictures.append(encode(pixels, encoding))
        names.append(row_name)
        labels.append(label)
    content = write_shard(pictures, names, labels, schema(class_names, encoding, shape, dtype)) if pictures else b""
    return content, ShardEntry(
        name=name,
        rows=len(pictures),
        bytes=len(content),
        sha256=sha256(content),
        row_groups=row_groups(content) if content else [],
        histogram=histogram.tolist() if dtype == "uint8" else [],
        sums=[] if dtype == "uint8" else _sums(pictures, shape, dtype),
        class_counts=np.bincount(np.array(labels, np.int64), minlength=max(1, len(class_names))).tolist(),
        skipped_first=[],
    )


def _sums(rows: Sequence[bytes], shape: tuple[int, int, int], dtype: str) -> list[list[str]]:
    """Of a shard's latents, a part at a time."""
    totals = [[0, 0] for _ in range(shape[0])]
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = np.frombuffer(b"".join(rows[first : first + ROWS_AT_ONCE]), np.dtype(dtype)).reshape(-1, *shape)
        for total, sums in zip(totals, channel_sums(part), strict=True):
            total[0] += sums[0]
            total[1] += sums[1]
    return [[hex(value) for value in total] for total in totals]


@contextmanager
def disk_full_is_said(uri: str, advice: str) -> Iterator[None]:
    """ENOSPC or a quota as InputError. Nothing half-written stays: files appear whole or not at all."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{uri}: no space left while writing; {advice}") from error


def save_shard(uri: str, content: bytes, entry: ShardEntry) -> None:
    if entry.rows:
        path = uris.join(uri, entry.name)
        with disk_full_is_said(path, "free some and run the same command again: finished shards are kept"):
            uris.write_bytes(path, content)


def publish_dataset(
    uri: str,
    entries: Sequence[ShardEntry],
    form: RowFormat,
    *,
    name: str,
    split: str,
    source: Mapping[str, Any] | None = None,
) -> DataSet:
    """Write the manifest over shards that are all there. Raises InputError when no row is left, or a channel of latents
    is constant."""
    shape, latents = form.shape, form.latents
    kept = [entry for entry in entries if entry.rows]
    skipped = [line for entry in entries for line in entry.skipped_first]
    if not kept:
        raise InputError(f"{uri}: not one record could be used; the first: {skipped[0] if skipped else 'none'}")
    first_rows = [0, *itertools.accumulate(entry.rows for entry in kept)]
    codec: dict[str, Any] = {}
    if latents is None:
        mean, std = level_statistics(np.sum([entry.histogram for entry in kept], axis=0))
    else:
        codec = {"codec": dataclasses.asdict(latent_codec(uri, kept, shape, latents))}
        mean, std = [0.0] * shape[0], [latents.scale] * shape[0]
    facts: dict[str, Any] = {
        "kind": KIND,
        "name": name,
        "split": split,
        "encoding": form.encoding,
        "rows": first_rows[-1],
        "resolution": shape[1],
        "channels": shape[0],
        **codec,
        "class_names": list(form.class_names),
        "class_counts": np.sum([entry.class_counts for entry in kept], axis=0).tolist(),
        "mean": mean,
        "std": std,
        "shards": [
            {"name": entry.name, "first_row": first, "rows": entry.rows, "row_groups": entry.row_groups}
            for entry, first in zip(kept, first_rows)
        ],
        "skipped": {"count": sum(entry.skipped for entry in entries), "first": skipped[:FIRST_SKIPPED]},
    }
    if source is not None:
        facts["source"] = dict(source)
    files = {entry.name: {"bytes": entry.bytes, "sha256": entry.sha256} for entry in kept}
    with disk_full_is_said(uri, "free some and run the same command again: finished shards are kept"):
        publish(uri, files, **facts)
    return open_dataset(uri)


def latent_codec(uri: str, entries: Sequence[ShardEntry], shape: tuple[int, int, int], latents: LatentOptions) -> Codec:
    """Mean and standard deviation of each channel over all shards, exact however they are cut."""
    count = sum(entry.rows for entry in entries) * shape[1] * shape[2]
    moments = []
    for channel in range(shape[0]):
        total, squares = (sum(int(entry.sums[channel][which], 16) for entry in entries) for which in (0, 1))
        moments.append(mean_std(total, squares, count))
        if moments[-1][1] == 0:
            raise InputError(f"{uri}: channel {channel} of the latents is {moments[-1][0]} everywhere; leave it out")
    mean, std = zip(*moments)
    return Codec(kind="latents", dtype=latents.dtype, mean=mean, std=std, scale=latents.scale, decoder=latents.decoder)


def level_statistics(histogram: Labels) -> tuple[list[float], list[float]]:
    """Counts of levels [C, 256] -> mean and standard deviation of each channel in [-1, 1], to 6 digits."""
    levels = np.arange(256) / 127.5 - 1.0
    count = histogram.sum(axis=1)
    mean = histogram @ levels / count
    std = np.sqrt(np.maximum(histogram @ levels**2 / count - mean**2, 0.0))
    return [round(float(v), 6) for v in mean], [round(float(v), 6) for v in std]


def write_dataset(
    uri: str,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    name: str,
    split: str,
    num_shards: int = 4,
    encoding: str = "png",
) -> DataSet:
    """Commit a data set that lies in memory at ``uri``.

    images: uint8 [N, C, H, W], square, C = 1 or 3. labels: int64 [N] in [0, number of classes); all 0 without classes.
    Files are ``{split}-00000-of-000NN.parquet``. The bytes depend on the arguments alone.
    """
    check_class_names(list(class_names), uri)
    rows, channels, height, width = images.shape
    if rows == 0 or height != width or channels not in (1, 3) or images.dtype != np.uint8:
        raise InputError(
            f"{uri}: images must be uint8 [N, 1 or 3, R, R] with N >= 1, got {images.dtype} {images.shape}"
        )
    top = max(1, len(class_names))
    if labels.shape != (rows,) or labels.min() < 0 or labels.max() >= top:
        raise InputError(f"{uri}: labels must be {rows} numbers in 0..{top - 1}, got {labels.min()}..{labels.max()}")
    names = [f"{i:08d}.png" for i in range(rows)]
    form = RowFormat(class_names=class_names, shape=(channels, height, width), encoding=encoding)
    num_shards = min(num_shards, rows)
    entries = []
    for index, (low, high) in enumerate(itertools.pairwise(shard_edges(rows, num_shards))):
        content, entry = build_shard(
            shard_name(split, index, num_shards),
            zip(names[low:high], labels[low:high].tolist(), images[low:high]),
            form,
        )
        save_shard(uri, content, entry)
        entries.append(entry)
    return publish_dataset(uri, entries, form, name=name, split=split)


def shard_edges(rows: int, num_shards: int) -> list[int]:
    """Shard i holds rows edges[i] .. edges[i + 1]; sizes differ by one at most."""
    return [rows * i // num_shards for i in range(num_shards + 1)]
