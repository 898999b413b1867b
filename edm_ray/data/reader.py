"""Read a data set: checked, decoded once, and served by position of the training order."""

from __future__ import annotations

import numpy as np
import torch

from edm_ray.data.format import read_shard
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import sample_indices
from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris
from edm_ray.storage.commit import read_file

MAX_DECODED_BYTES = 8 << 30


class Pixels:
    """All images of a data set in memory, as uint8 [N, C, H, W], with labels int64 [N].

    xflip: mirror images belong to the data set too (configurations A-E): an epoch has 2 N samples.
    """

    def __init__(self, dataset: DataSet, xflip: bool = False) -> None:
        self.xflip = xflip
        shape = (dataset.rows, dataset.channels, dataset.resolution, dataset.resolution)
        if (size := int(np.prod(shape))) > MAX_DECODED_BYTES:
            raise InputError(
                f"{dataset.uri}: {size / 2**30:.1f} GiB decoded; a data set is held in memory and may be at most "
                f"{MAX_DECODED_BYTES / 2**30:.0f} GiB"
            )
        self.dataset = dataset
        self.images = np.empty(shape, np.uint8)
        self.labels = np.empty(dataset.rows, np.int64)
        for shard in dataset.shards:
            where = uris.join(dataset.uri, shard.name)
            content = read_file(dataset.uri, shard.name, {"files": dataset.files})
            images, labels = read_shard(content, where, dataset.channels, dataset.resolution)
            if len(images) != shard.rows:
                raise IntegrityError(f"{where}: {len(images)} rows, the manifest says {shard.rows}")
            top = max(1, len(dataset.class_names))
            if labels.min() < 0 or labels.max() >= top:
                row = int(np.argmax((labels < 0) | (labels >= top)))
                raise IntegrityError(f"{where}: row {row}: label {labels[row]} is outside 0..{top - 1}")
            part = slice(shard.first_row, shard.first_row + shard.rows)
            self.images[part], self.labels[part] = images, labels

    def at(self, positions: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels at positions of the training order: uint8 [B, C, H, W], int64 [B]."""
        samples = len(self.images) * (2 if self.xflip else 1)
        mirrored, rows = np.divmod(sample_indices(positions, samples, seed), len(self.images))
        images = self.images[rows]
        if self.xflip:
            images[mirrored == 1] = images[mirrored == 1, :, :, ::-1]
        return torch.from_numpy(images), torch.from_numpy(self.labels[rows])
