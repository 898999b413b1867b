"""Shards of a data set, fetched and decoded by several threads, every byte checked; what to do with a damaged one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from edm_ray.data.format import Labels, Pixels
from edm_ray.data.manifest import DataSet, Shard
from edm_ray.data.verify import read_verified
from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.uris import NotFound

POLICIES = ("raise", "skip")


@dataclass
class SkippedShards:
    """Shards that could not be used, with the reason: what policy "skip" has left out."""

    shards: dict[str, str] = field(default_factory=dict)
    rows_of: dict[str, int] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        return sum(self.rows_of.values())

    def add(self, shard: Shard, error: Exception) -> None:
        with self._guard:
            if shard.name not in self.shards:
                self.rows_of[shard.name] = shard.rows
                self.shards[shard.name] = str(error)


def fetch(
    dataset: DataSet,
    shards: Sequence[Shard],
    receive: Callable[[Shard, Pixels, Labels], None],
    threads: int = 8,
    skipped: SkippedShards | None = None,
) -> None:
    """Give every shard to ``receive``, from several threads at once; at most ``threads`` shards are in memory.

    A shard that is missing, truncated, changed or replaced raises InputError (IntegrityError where its bytes are
    not the manifest's) naming it, and nothing more is started; with ``skipped`` it is noted there instead. What else
    storage raises (no permission, no answer) is raised under either policy.
    """

    def one(shard: Shard) -> None:
        try:
            images, labels = read_verified(dataset, shard)
        except (IntegrityError, NotFound) as error:
            if skipped is None:
                raise
            skipped.add(shard, error)
            return
        receive(shard, images, labels)

    with ThreadPoolExecutor(max(1, min(threads, len(shards))), thread_name_prefix="fetch") as pool:
        waiting = {pool.submit(one, shard) for shard in shards}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        finally:
            for future in waiting:
                future.cancel()


def stand_in(dataset: DataSet, number: int, skipped: SkippedShards) -> int:
    """This shard, or when it is skipped the next one that is not. Raises InputError when there is none."""
    for step in range(len(dataset.shards)):
        if dataset.shards[other := (number + step) % len(dataset.shards)].name not in skipped.shards:
            return other
    raise InputError(f"{dataset.uri}: not one shard is whole; the first: {next(iter(skipped.shards.values()))}")
