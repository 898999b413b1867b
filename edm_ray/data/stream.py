"""Rows of a data set that does not fit the cache: the shards that are needed now are decoded into it, others leave.

The processes of a node share the cache. What each of them holds beyond the batch that it is reading (shards to come,
shards just used) goes as soon as one of them finds no room for what it needs now: while that one waits, the others wait
for it in their next step, and would hold on for ever.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np

from edm_ray.data.cache import Entry, Put, sound_entry
from edm_ray.data.eviction import Cache, CacheFull, ask_for_room, last_asked_for_room
from edm_ray.data.fetch import SkippedShards, stand_in
from edm_ray.data.format import Labels, Pixels
from edm_ray.data.manifest import DataSet, Shard
from edm_ray.data.verify import read_verified
from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.uris import NotFound

logger = logging.getLogger(__name__)
CHECK_BYTES = 1 << 40
"""A decoded shard is always compared with its hashes before it is used."""
IDLE_TAKES = 64
"""A shard that was not used for so many batches is unlocked: it may then leave the cache."""
ROOM_WAIT_S = 60.0
"""How long a batch waits for room that other processes are asked for; what they are decoding must end first."""
_POLL_S = 0.1


class Stream:
    """Decoded shards of one reader. Each is an entry of the node's cache, so the node's processes share them.

    processes: how many of this node read so; together they keep half of the cache filled ahead.
    """

    def __init__(
        self, dataset: DataSet, cache: Cache, threads: int, skipped: SkippedShards | None, processes: int = 1
    ) -> None:
        self.dataset, self.cache, self.skipped = dataset, cache, skipped
        self.first_rows = np.array([shard.first_row for shard in dataset.shards], np.int64)
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="shards")
        self._open: dict[int, Future[Entry]] = {}
        self._used: dict[int, int] = {}
        self._takes, self._guard = 0, threading.Lock()
        self._needed: frozenset[int] = frozenset()
        largest = max(shard.rows for shard in dataset.shards) * (math.prod(dataset.row_shape) + 8)
        self._most_ahead = cache.limit // (2 * largest * processes)
        self._closed = threading.Event()
        self._giving = threading.Thread(target=self._give_room, daemon=True, name="give-room")
        self._giving.start()

    @property
    def images(self) -> Pixels:
        raise self._not_whole()

    @property
    def labels(self) -> Labels:
        raise self._not_whole()

    def _not_whole(self) -> InputError:
        return InputError(f"{self.dataset.uri}: read in blocks, it is nowhere as a whole; open it with order='rows'")

    def announce(self, rows: Labels) -> None:
        """Start decoding the shards of these rows, in threads, unless this process's share of the cache is in use."""
        numbers = np.unique(np.searchsorted(self.first_rows, rows, side="right") - 1)
        with self._guard:
            room = max(0, self._most_ahead - len(self._open))
            known = np.array([number in self._open for number in numbers.tolist()], bool)
        self._shards(np.concatenate([numbers[known], numbers[~known][:room]]))

    def take(self, rows: Labels) -> tuple[Pixels, Labels]:
        """Copies of rows: uint8 [B, *row_shape], int64 [B]. Waits for their shards."""
        owner = np.searchsorted(self.first_rows, rows, side="right") - 1
        numbers = np.unique(owner)
        with self._guard:
            self._needed = frozenset(numbers.tolist())
        found = self._shards(numbers)
        images = np.empty((len(rows), *self.dataset.row_shape), np.uint8)
        labels = np.empty(len(rows), np.int64)
        for number, future in found.items():
            here, shard = owner == number, self._ready(number, future)
            # In place of a skipped shard stands another one, which may be shorter.
            images[here], labels[here] = shard.take((rows[here] - self.first_rows[number]) % len(shard.labels))
        with self._guard:
            self._needed = frozenset()
        self._takes += 1
        self._close_idle(IDLE_TAKES)
        return images, labels

    def _ready(self, number: int, future: Future[Entry]) -> Entry:
        """A shard that is needed now. When there was no room for it, what is not needed now goes: here at once, in the
        other processes of the node when they see that they were asked."""
        given_up = time.monotonic() + ROOM_WAIT_S
        while True:
            try:
                return future.result()
            except CacheFull:
                if self._bytes(self._needed) > self.cache.limit or time.monotonic() > given_up:
                    raise
            others = self._let_go()
            wait(others)
            ask_for_room(self.cache)
            time.sleep(0 if others else _POLL_S)
            with self._guard:
                self._open[number] = future = self._pool.submit(self._entry, number)

    def _let_go(self) -> list[Future[Entry]]:
        """Of all that the batch under way does not need."""
        with self._guard:
            others = [self._open.pop(other) for other in [*self._open] if other not in self._needed]
        for other in others:
            _release(other)
        return others

    def _bytes(self, numbers: Collection[int]) -> int:
        row = math.prod(self.dataset.row_shape) + 8
        return sum(self.dataset.shards[number].rows * row for number in numbers)

    def _give_room(self) -> None:
        """In a thread: what the batch under way does not need goes whenever a process of the node asks for room."""
        seen = last_asked_for_room(self.cache)
        while not self._closed.wait(_POLL_S):
            if (asked := last_asked_for_room(self.cache)) != seen:
                seen = asked
                self._let_go()

    def close(self) -> None:
        self._closed.set()
        self._giving.join()
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
            asked = number if self.skipped is None else stand_in(self.dataset, number, self.skipped)
            try:
                try:
                    return self._cached(asked)
                except CacheFull:
                    self._close_idle(0)
                    return self._cached(asked)
            except (IntegrityError, NotFound) as error:
                if self.skipped is None:
                    raise
                logger.warning("a damaged shard is skipped: %s", error)
                self.skipped.add(self.dataset.shards[asked], error)

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
