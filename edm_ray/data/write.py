"""Write a data set: Parquet shards one at a time, the manifest last."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from edm_ray.data.format import encode_png, schema, write_shard
from edm_ray.data.manifest import KIND, DataSet, Shard, open_dataset
from edm_ray.errors import InputError
from edm_ray.storage.commit import commit


def write_dataset(
    uri: str,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    name: str,
    split: str,
    names: Sequence[str] | None = None,
    num_shards: int = 4,
) -> DataSet:
    """Commit a data set at ``uri``.

    images: uint8 [N, C, H, W], square, C = 1 or 3. labels: int64 [N] in [0, number of classes); all 0 without classes.
    Files are ``{split}-00000-of-000NN.parquet``. The bytes depend on the arguments alone.
    """
    rows, channels, height, width = images.shape
    if rows == 0 or height != width or channels not in (1, 3) or images.dtype != np.uint8:
        raise InputError(
            f"{uri}: images must be uint8 [N, 1 or 3, R, R] with N >= 1, got {images.dtype} {images.shape}"
        )
    top = max(1, len(class_names))
    if labels.shape != (rows,) or labels.min() < 0 or labels.max() >= top:
        raise InputError(f"{uri}: labels must be {rows} numbers in 0..{top - 1}, got {labels.min()}..{labels.max()}")
    num_shards = min(num_shards, rows)
    edges = [rows * i // num_shards for i in range(num_shards + 1)]
    shards = tuple(
        Shard(name=f"{split}-{i:05d}-of-{num_shards:05d}.parquet", first_row=low, rows=high - low)
        for i, (low, high) in enumerate(itertools.pairwise(edges))
    )
    arrow_schema = schema(class_names)
    names = names if names is not None else [f"{i:08d}.png" for i in range(rows)]

    def files() -> Iterator[tuple[str, bytes]]:
        for shard in shards:
            part = slice(shard.first_row, shard.first_row + shard.rows)
            pictures = [encode_png(pixels) for pixels in images[part]]
            yield shard.name, write_shard(pictures, names[part], labels[part].tolist(), arrow_schema)

    # Integer sums: exact, so the manifest's numbers do not depend on how they were added up.
    values = images.transpose(1, 0, 2, 3).reshape(channels, -1)
    count = values.shape[1]
    histogram = np.stack([np.bincount(channel, minlength=256) for channel in values])
    levels = np.arange(256) / 127.5 - 1.0
    mean = histogram @ levels / count
    std = np.sqrt(np.maximum(histogram @ levels**2 / count - mean**2, 0.0))
    commit(
        uri,
        files(),
        kind=KIND,
        name=name,
        rows=rows,
        resolution=height,
        channels=channels,
        class_names=list(class_names),
        mean=[round(float(v), 6) for v in mean],
        std=[round(float(v), 6) for v in std],
        shards=[dataclasses.asdict(shard) for shard in shards],
    )
    return open_dataset(uri)
