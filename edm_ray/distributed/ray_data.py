"""``reader=ray-data``: Ray Data decodes shards on any CPU of the cluster and streams them to the training workers.

For decoding that is too heavy for the nodes that train. A task decodes a shard, every byte of it checked; nothing is
cached, so each epoch decodes every shard again. Which image a step gets depends on timing: runs are not repeatable, and
a resumed run starts its epoch over. Sigmas, noise and augmentation stay keyed by position.

All epochs of a run are one stream. With one stream per epoch, a worker at its end would wait for the others, which wait
for it in their step: shares of a batch need not be equal.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import ray.data
import ray.train
import torch

from edm_ray.config.training import TrainingConfig
from edm_ray.data.codec import view
from edm_ray.data.fetch import SkippedShards
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import sample_indices
from edm_ray.data.reader import Batch, Served
from edm_ray.data.verify import read_verified
from edm_ray.distributed.cluster.preflight import nodes_there, total
from edm_ray.distributed.shipping import environment
from edm_ray.errors import InputError
from edm_ray.seeding import stream_key, uniform
from edm_ray.training.run import checkpoint_store

logger = logging.getLogger(__name__)
NAME = "images"
TASK_CPUS = 1
TASK_ROWS = 4096
"""About how many rows a task decodes, as whole (small) shards."""
SHUFFLED_ROWS = 8192
"""Rows that a worker holds to shuffle; shards come in shuffled order, whole."""
FETCHED_ROWS = 1024


def require_room(workers: int, cpus: float) -> None:
    """Raises InputError where training would leave no CPU to decode on, and so would wait for ever."""
    there, needed = total(nodes_there(), "CPU"), workers * cpus + TASK_CPUS
    if there < needed:
        raise InputError(
            f"reader=ray-data needs {TASK_CPUS} CPU beside those of training, {needed:g} in all; the cluster has "
            f"{there:g}. Use fewer workers, add nodes, or set reader=cache"
        )


def shards_to_come(dataset: DataSet, config: TrainingConfig, run_uri: str) -> Callable[[], ray.data.Dataset]:
    """What Ray Train calls when a group of workers starts: the stream from the newest checkpoint's epoch on."""
    env = environment()

    def make() -> ray.data.Dataset:
        os.environ.update(env.get("env_vars", {}))
        seen = max(checkpoint_store(run_uri).committed(), default=0)
        count = len(dataset.shards)
        first, last = seen // dataset.rows, math.ceil(config.total_kimg * 1000 / dataset.rows) + 1
        each = max(1, TASK_ROWS * count // dataset.rows)  # visits of a task
        visits = (last - first) * count
        numbers = ray.data.range(visits, override_num_blocks=math.ceil(visits / each))
        decode = partial(decode_visits, dataset, config.seed, first * count)
        return numbers.map_batches(decode, batch_size=None, num_cpus=TASK_CPUS, runtime_env=env)

    return make


def decode_visits(dataset: DataSet, seed: int, first: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``id``: visits of shards, counted from ``first`` -> image uint8 [N, *row_shape], label int64 [N].

    Of a shard that cannot be read comes one row with the label -1 - its number: what a task raises reaches the workers
    as text in a foreign error, so they find out for themselves what is wrong with it.
    """
    visits = first + batch["id"].astype(np.int64)
    numbers = sample_indices(visits, len(dataset.shards), seed, "ray-data shards")
    parts = []
    for number in numbers.tolist():
        try:
            parts.append(read_verified(dataset, dataset.shards[number]))
        except (InputError, OSError) as error:
            logger.warning("%s", error)
            parts.append((np.zeros((1, *dataset.row_shape), np.uint8), np.array([-1 - number])))
    images, labels = zip(*parts)
    return {"image": np.concatenate(images), "label": np.concatenate(labels)}


class RayDataReader:
    """The worker's end of the stream, in place of `Reader`: whatever comes next is what the positions asked for get."""

    def __init__(self, dataset: DataSet, config: TrainingConfig, rows: Iterator[dict[str, np.ndarray]]) -> None:
        self.dataset, self.xflip, self.skipped = dataset, config.xflip, SkippedShards()
        self._rows, self._left = rows, _no_rows(dataset)

    def at(self, positions: np.ndarray, seed: int) -> Batch:
        """As `Reader.at`. With xflip a coin of each position says whether its image is mirrored."""
        parts, missing = [self._left], len(positions) - len(self._left[1])
        while missing > 0:
            batch = next(self._rows, None)
            if batch is None:
                raise InputError(f"{self.dataset.uri}: Ray Data has ended before the run; run the same command again")
            if (bad := batch["label"] < 0).any():
                self._fail(-1 - int(batch["label"][bad][0]))
            parts.append((batch["image"], batch["label"]))
            missing -= len(batch["label"])
        images, labels = (np.concatenate(column) for column in zip(*parts))
        count = len(positions)
        self._left = images[count:], labels[count:]
        images, labels = images[:count], labels[:count]
        if self.xflip:
            coins = uniform(stream_key("ray-data xflip", seed), torch.from_numpy(positions), 1)[:, 0].numpy() < 0.5
            images[coins] = images[coins, :, :, ::-1]
        pixels, numbers = view(torch.from_numpy(images), self.dataset.codec), torch.from_numpy(labels)
        return (pixels.pin_memory(), numbers.pin_memory()) if torch.cuda.is_available() else (pixels, numbers)

    def _fail(self, number: int) -> None:
        shard = self.dataset.shards[number]
        read_verified(self.dataset, shard)
        raise InputError(
            f"{self.dataset.uri}: {shard.name} can be read on the node of a training worker, but not where a task of "
            "Ray Data decoded it; the log of that task says why"
        )

    def follow(self, batches: Iterable[np.ndarray], seed: int) -> None:
        """Ray Data reads ahead by itself."""

    def close(self) -> None:
        self._rows = iter(())


def _no_rows(dataset: DataSet) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((0, *dataset.row_shape), np.uint8), np.empty(0, np.int64)


def open_in_worker(dataset: DataSet, config: TrainingConfig) -> Served:
    """In a worker of Ray Train."""
    shard: Any = ray.train.get_dataset_shard(NAME)
    rows = shard.iter_batches(
        batch_size=FETCHED_ROWS,
        batch_format="numpy",
        prefetch_batches=4,
        local_shuffle_buffer_size=SHUFFLED_ROWS,
        local_shuffle_seed=config.seed,
    )
    return RayDataReader(dataset, config, iter(rows))
