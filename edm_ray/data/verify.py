"""Check a data set shard by shard: size, sha256, page checksums, every picture, every label, against the manifest."""

from __future__ import annotations

import numpy as np

from edm_ray.data.format import Labels, Pixels, read_shard
from edm_ray.data.manifest import DataSet, Shard
from edm_ray.errors import IntegrityError
from edm_ray.storage import uris
from edm_ray.storage.commit import read_file


def read_verified(dataset: DataSet, shard: Shard) -> tuple[Pixels, Labels]:
    """One shard, all of it checked: uint8 [N, *dataset.row_shape], int64 [N].

    Raises IntegrityError naming shard, row and reason."""
    where = uris.join(dataset.uri, shard.name)
    content = read_file(dataset.uri, shard.name, {"files": dataset.files})
    images, labels = read_shard(content, where, dataset.channels, dataset.resolution, dataset.codec.itemsize)
    if len(images) != shard.rows:
        raise IntegrityError(f"{where}: {len(images)} rows, the manifest says {shard.rows}")
    top = max(1, len(dataset.class_names))
    if ((labels < 0) | (labels >= top)).any():
        row = int(np.argmax((labels < 0) | (labels >= top)))
        raise IntegrityError(f"{where}: row {row}: label {labels[row]} is outside 0..{top - 1}")
    return images, labels


def pooled_std(dataset: DataSet) -> float:
    """Standard deviation of all values of all channels together, in [-1, 1]: what sigma_data stands for (the paper's
    Table 1 uses 0.5 for its data sets)."""
    mean, std = np.array(dataset.mean), np.array(dataset.std)
    return float(np.sqrt(np.mean(std**2 + mean**2) - np.mean(mean) ** 2))
