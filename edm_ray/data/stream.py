"""Rows of a data set that does not fit the cache: the shards that are needed now are decoded into it, others leave."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np

from edm_ray.data.cache import Entry, Put, sound_entry
from edm_ray.data.fetch import Lost, stand_in
from edm_ray.data.format import Labels, Pixels
from edm_ray.data.manifest import DataSet, Shard
from edm_ray.data.room import Cache, CacheFull
from edm_ray.data.verify import read_verified
from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.uris import NotFound

logger = logging.getLogger(__name__)
CHECK_BYTES = 1 << 40
"""A decoded shard is always compared with its hashes before it is used."""
IDLE_TAKES = 64
"""A shard that was not used for so many batches is unlocked: it may then leave the cache."""


class Stream:
    """Decoded shards of one reader. Each is an entry of the node's cache, so the node's processes share them."""

    def __init__(self, dataset: DataSet, cache: Cache, threads: int, lost: Lost | None) -> None:
        self.dataset, self.cache, self.lost = dataset, cache, lost
        self.first_rows = np.array([shard.first_row for shard in dataset.shards], np.int64)
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="shards")
        self._open: dict[int, Future[Entry]] = {}
        self._used: dict[int, int] = {}
        self._takes, self._guard = 0, threading.Lock()
        largest = max(shard.rows for shard in dataset.shards) * (math.prod(dataset.row_shape) + 8)
        self._most_ahead = cache.limit // (2 * largest)

    @property
    def images(self) -> Pixels:
        raise self._not_whole()

    @property
    def labels(self) -> Labels:
        raise self._not_whole()

    def _not_whole(self) -> InputError:
        return InputError(f"{self.dataset.uri}: read in blocks, it is nowhere as a whole; open it with order='rows'")

    def announce(self, rows: Labels) -> None:
        """Start decoding the shards of these rows, in threads, unless half of the cache is in use here already."""
        numbers = np.unique(np.searchsorted(self.first_rows, rows, side="right") - 1)
        with self._guard:
            room = max(0, self._most_ahead - len(self._open))
            known = np.array([number in self._open for number in numbers.tolist()], bool)
        self._shards(np.concatenate([numbers[known], numbers[~known][:room]]))

    def take(self, rows: Labels) -> tuple[Pixels, Labels]:
        """Copies of rows: uint8 [B, *row_shape], int64 [B]. Waits for their shards."""
        owner = np.searchsorted(self.first_rows, rows, side="right") - 1
        found = self._shards(np.unique(owner))
        images = np.empty((len(rows), *self.dataset.row_shape), np.uint8)
        labels = np.empty(len(rows), np.int64)
        for number, future in found.items():
            here, shard = owner == number, self._ready(number, future, found)
            # In place of a lost shard stands another one, which may be shorter.
            images[here], labels[here] = shard.take((rows[here] - self.first_rows[number]) % len(shard.labels))
        self._takes += 1
        self._close_idle(IDLE_TAKES)
        return images, labels

    def _ready(self, number: int, future: Future[Entry], needed: Collection[int]) -> Entry:
        """A shard that is needed now. When there was no room for it, what is not needed now goes."""
        try:
            return future.result()
        except CacheFull:
            with self._guard:
                others = [self._open.pop(other) for other in [*self._open] if other not in needed]
            for other in others:
                _release(other)
            wait(others)
            with self._guard:
                self._open[number] = again = self._pool.submit(self._entry, number)
            return again.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        with self._guard:
            for future in self._open.values():
                _release(future)
            self._open.clear()

    def _shards(self, numbers: Labels) -> dict[int, Future[Entry]]:
        with self._guard:
            for number in numbers.tolist():
                self._used[number] = self._takes
                if number not in self._open:
                    self._open[number] = self._pool.submit(self._entry, number)
            return {number: self._open[number] for number in numbers.tolist()}

    def _close_idle(self, takes: int) -> None:
        """Let go of what the last so many takes (and that under way) did not use."""
        with self._guard:
            for number in [n for n, used in self._used.items() if self._takes - used > takes]:
                del self._used[number]
                if number in self._open:
                    _release(self._open.pop(number))

    def _entry(self, number: int) -> Entry:
        while True:
            asked = number if self.lost is None else stand_in(self.dataset, number, self.lost)
            try:
                try:
                    return self._cached(asked)
                except CacheFull:
                    self._close_idle(0)
                    return self._cached(asked)
            except (IntegrityError, NotFound) as error:
                if self.lost is None:
                    raise
                logger.warning("a damaged shard is skipped: %s", error)
                self.lost.add(self.dataset.shards[asked], error)

    def _cached(self, number: int) -> Entry:
        shard, key = self.dataset.shards[number], f"{self.dataset.hash}-{number:06d}"
        shape = (shard.rows, *self.dataset.row_shape)
        what = f"shard {shard.name} of {self.dataset.uri}"
        return sound_entry(self.cache, key, shape, what, partial(self._decode, shard), CHECK_BYTES)

    def _decode(self, shard: Shard, put: Put) -> None:
        put(0, *read_verified(self.dataset, shard))


def _release(future: Future[Entry]) -> None:
    def close(done: Future[Entry]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().close()

    future.cancel()
    future.add_done_callback(close)
