"""Small data sets for tests of the reader, and a limit on what stays in memory, so that the cache is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edm_ray.data.manifest import DataSet
from edm_ray.data.write import write_dataset


def make_dataset(
    path: Path, rows: int = 40, size: int = 8, shards: int = 5, seed: int = 0, encoding: str = "raw"
) -> tuple[DataSet, np.ndarray, np.ndarray]:
    """Noise: (data set, uint8 [rows, 3, size, size], int64 [rows])."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (rows, 3, size, size), np.uint8)
    labels = np.arange(rows, dtype=np.int64) % 3
    names = ["a", "b", "c"]
    dataset = write_dataset(
        str(path), images, labels, names, name="noise", split="train", num_shards=shards, encoding=encoding
    )
    return dataset, images, labels


def shard_path(dataset: DataSet, number: int) -> Path:
    return Path(dataset.uri) / dataset.shards[number].name
