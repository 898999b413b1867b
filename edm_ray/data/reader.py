"""Read a data set: checked, decoded once a node, and served by position of the training order."""

from __future__ import annotations

import logging
import math
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
import torch

from edm_ray.data.blocks import BlockOrder
from edm_ray.data.cache import Entry, Put, sound_entry
from edm_ray.data.codec import view
from edm_ray.data.eviction import Cache, open_cache
from edm_ray.data.fetch import POLICIES, SkippedShards, fetch, stand_in
from edm_ray.data.format import Labels, Pixels
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import sample_indices
from edm_ray.data.prefetch import Prefetch
from edm_ray.data.stream import Stream
from edm_ray.data.verify import read_verified
from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.uris import NotFound

logger = logging.getLogger(__name__)
IN_MEMORY_BYTES = 16 << 20
"""Data sets up to this size (decoded) are decoded into memory by every process and leave no file."""
CHECK_AT_ONCE_BYTES = 256 << 20
"""A cached data set up to this size is compared with its hashes before it is used; a larger one while it is used."""
ORDERS = ("rows", "blocks")
ANNOUNCED_BATCHES = 32
"""With order "blocks", shards are asked for so many batches before their rows are."""
LOCATED_AT_ONCE = 8192
"""`Reader.follow` computes the order of so many positions together: it costs NumPy about as much as that of 256."""
Batch = tuple[torch.Tensor, torch.Tensor]


class Located(NamedTuple):
    """What stands at positions of the order: rows of the data set, and 1 where mirrored. Three int64 [B]."""

    positions: Labels
    rows: Labels
    mirrored: Labels


class Source(Protocol):
    """Decoded rows of a data set: uint8, latents as the bytes that they are."""

    @property
    def images(self) -> Pixels: ...

    @property
    def labels(self) -> Labels: ...

    def announce(self, rows: Labels) -> None:
        """These rows will be asked for soon."""

    def take(self, rows: Labels) -> tuple[Pixels, Labels]:
        """Copies of rows, in this order: uint8 [B, C, H, W], int64 [B]."""

    def close(self) -> None: ...


class Served(Protocol):
    """What training reads from: a `Reader`, or what stands in for it."""

    skipped: SkippedShards

    def at(self, positions: np.ndarray, seed: int) -> Batch: ...

    def follow(self, batches: Iterable[np.ndarray], seed: int) -> None: ...

    def close(self) -> None: ...


class InMemory:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.images, self.labels = np.empty(shape, np.uint8), np.empty(shape[0], np.int64)

    def take(self, rows: Labels) -> tuple[Pixels, Labels]:
        return self.images[rows], self.labels[rows]

    def put(self, first: int, images: Pixels, labels: Labels) -> None:
        part = slice(first, first + len(images))
        self.images[part], self.labels[part] = images, labels

    def announce(self, rows: Labels) -> None:
        pass

    def close(self) -> None:
        pass


class Reader:
    """Images and labels by position of the training order. Made by `open_reader`; close it, or use it as a context."""

    def __init__(
        self, dataset: DataSet, source: Source, xflip: bool, skipped: SkippedShards, order: BlockOrder | None = None
    ) -> None:
        self.dataset, self.xflip, self.skipped, self._order = dataset, xflip, skipped, order
        self._source, self._prefetch = source, Prefetch()
        self._closed = threading.Event()
        self._damage: Exception | None = None
        self._checking: threading.Thread | None = None
        if isinstance(source, Entry) and source.images.nbytes > CHECK_AT_ONCE_BYTES:
            self._checking = threading.Thread(target=self._check, args=(source,), daemon=True, name="check-cache")
            self._checking.start()

    @property
    def images(self) -> Pixels:
        """All pictures: uint8 [N, C, H, W], read-only where mapped. Raises InputError for a data set of latents."""
        if not self.dataset.codec.is_pixels:
            raise InputError(
                f"{self.dataset.uri}: holds latents (of decoder {self.dataset.codec.decoder!r}), pictures are needed "
                "here; prepare the pictures themselves as another data set and give that"
            )
        return self._source.images

    @property
    def labels(self) -> Labels:
        """int64 [N]."""
        return self._source.labels

    def at(self, positions: np.ndarray, seed: int) -> Batch:
        """Images and labels at positions of the training order: uint8 [B, C, H, W] (latents: float16 or float32, as
        stored), int64 [B].

        Pinned where CUDA is there. What `follow` announced is taken from its thread. Raises what went wrong there, or
        IntegrityError when the cached pixels were found changed.
        """
        if self._closed.is_set():
            raise ValueError(f"{self.dataset.uri}: the reader is closed")
        if self._damage is not None:
            raise self._damage
        ready = self._prefetch.take(positions, seed)
        return ready if ready is not None else self._read(self._locate(positions, seed))

    def follow(self, batches: Iterable[np.ndarray], seed: int, depth: int = 4) -> None:
        """Read these batches of positions ahead, in a thread, at most ``depth`` of them.

        `at` gives the same with or without; positions that were not announced are read on the spot.
        """
        ahead = self._announced(self._located(batches, seed))
        self._prefetch.start(lambda batch: (batch.positions, self._read(batch)), ahead, seed, depth)

    def close(self) -> None:
        """End the threads and let go of the cache's file. Images already given out stay good."""
        self._closed.set()
        self._prefetch.stop()
        if self._checking is not None:
            self._checking.join()
        self._source.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self, batch: Located) -> Batch:
        images, labels = self._source.take(batch.rows)
        if self.xflip:
            mirrored = batch.mirrored == 1
            images[mirrored] = images[mirrored, :, :, ::-1]
        pixels, numbers = view(torch.from_numpy(images), self.dataset.codec), torch.from_numpy(labels)
        return (pixels.pin_memory(), numbers.pin_memory()) if torch.cuda.is_available() else (pixels, numbers)

    def _locate(self, positions: Labels, seed: int) -> Located:
        if self._order is not None:
            return Located(positions, *self._order.locate(positions, seed))
        mirrored, rows = np.divmod(
            sample_indices(positions, self.dataset.rows * (1 + self.xflip), seed), self.dataset.rows
        )
        return Located(positions, rows, mirrored)

    def _located(self, batches: Iterable[np.ndarray], seed: int) -> Iterator[Located]:
        """The batches with what stands there, computed for several together."""
        group: list[np.ndarray] = []
        failed: Exception | None = None
        try:
            for positions in batches:
                group.append(positions)
                if sum(map(len, group)) >= LOCATED_AT_ONCE:
                    yield from self._cut(group, seed)
                    group = []
        except Exception as error:
            failed = error  # raised where its batch is asked for, after those before it
        if group:
            yield from self._cut(group, seed)
        if failed is not None:
            raise failed

    def _cut(self, group: list[np.ndarray], seed: int) -> Iterator[Located]:
        located = self._locate(np.concatenate(group), seed)
        edges = np.cumsum([len(positions) for positions in group[:-1]])
        return (Located(*parts) for parts in zip(*(np.split(column, edges) for column in located), strict=True))

    def _announced(self, batches: Iterator[Located]) -> Iterator[Located]:
        """The batches; those to come are announced, so that their shards are fetched while others are served."""
        if self._order is None:
            yield from batches
            return
        ahead: deque[Located] = deque()
        for batch in batches:
            self._source.announce(batch.rows)
            ahead.append(batch)
            if len(ahead) > ANNOUNCED_BATCHES:
                yield ahead.popleft()
        yield from ahead

    def _check(self, source: Entry) -> None:
        try:
            source.check(self._closed.is_set)
        except Exception as error:
            self._damage = error


def open_reader(
    dataset: DataSet,
    xflip: bool = False,
    *,
    cache: Cache | None = None,
    on_damage: str = "raise",
    threads: int = 8,
    order: str = "rows",
    lanes: int = 24,
    block_shards: int = 2,
) -> Reader:
    """Decode a data set, or map what a process of this node has decoded, and serve it.

    xflip: mirror images belong to the data set too (configurations A-E): an epoch has 2 N samples.
    cache: where decoded pixels are kept (default: the node's, `open_cache`); a data set of up to 16 MiB stays in
    memory. threads: shards fetched and decoded at a time.
    on_damage: "raise" (IntegrityError naming the first bad shard) or "skip": rows of a shard that is missing or damaged
    are replaced by rows of the next good one; `Reader.skipped` counts and names them. Nothing incomplete is cached.
    order: "rows" (a perfect permutation; the decoded data set must fit the cache) or "blocks" (`BlockOrder`, with
    ``lanes``, which must be those of `rank_positions`, and ``block_shards``; only the shards in use must fit). They are
    two different orders, so the size of a cache never chooses between them.
    """
    if order not in ORDERS:
        raise InputError(f"order={order!r}: allowed are {', '.join(ORDERS)}")
    if on_damage not in POLICIES:
        raise InputError(f"on_damage={on_damage!r}: allowed are {', '.join(POLICIES)}")
    if xflip and not dataset.codec.is_pixels:
        raise InputError(
            f"{dataset.uri}: xflip=True: a mirrored latent is not the latent of the mirrored picture; set xflip=false, "
            "or encode the mirrored pictures too"
        )
    skipped = SkippedShards()
    if order == "blocks":
        if lanes > len(dataset.shards):
            raise InputError(
                f'{dataset.uri}: order="blocks" with {lanes} lanes would read each of its {len(dataset.shards)} shards '
                f"about {lanes / len(dataset.shards) + 1:.0f} times an epoch; set lanes to {len(dataset.shards)} or "
                'less (a multiple of the workers), prepare it with more shards, or use order="rows"'
            )
        blocks = BlockOrder(tuple(shard.rows for shard in dataset.shards), lanes, xflip, block_shards)
        cache = cache or open_cache()
        # torchrun and Ray Train set it; how far ahead is read depends on it, nothing else.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        stream = Stream(dataset, cache, threads, skipped if on_damage == "skip" else None, processes)
        return Reader(dataset, stream, xflip, skipped, blocks)
    if dataset.rows * _row_bytes(dataset) <= IN_MEMORY_BYTES:
        memory = InMemory((dataset.rows, *dataset.row_shape))
        _decode(dataset, memory.put, threads, skipped if on_damage == "skip" else None)
        return Reader(dataset, memory, xflip, skipped)
    cache = cache or open_cache()
    try:
        source = _cached(dataset, cache, dataset.hash, threads, None)
    except (IntegrityError, NotFound) as error:
        if on_damage == "raise":
            raise
        logger.warning("%s: damaged shards are skipped: %s", dataset.uri, error)
        source = _cached(dataset, cache, f"{dataset.hash}-{uuid.uuid4().hex[:8]}", threads, skipped)
        source.path.unlink()  # not whole: for this reader alone
    return Reader(dataset, source, xflip, skipped)


def _row_bytes(dataset: DataSet) -> int:
    return math.prod(dataset.row_shape)


def _cached(dataset: DataSet, cache: Cache, key: str, threads: int, skipped: SkippedShards | None) -> Entry:
    """The data set's entry of the cache, made when it is not there."""
    what = f"data set {dataset.name} ({dataset.uri})"
    shape = (dataset.rows, *dataset.row_shape)
    return sound_entry(
        cache, key, shape, what, lambda put: _decode(dataset, put, threads, skipped), CHECK_AT_ONCE_BYTES
    )


def _decode(dataset: DataSet, put: Put, threads: int, skipped: SkippedShards | None) -> None:
    """Put every row; rows of a skipped shard are those of the next good one, so no other row depends on the damage."""
    shards = dataset.shards
    fetch(dataset, shards, lambda shard, images, labels: put(shard.first_row, images, labels), threads, skipped)
    if skipped is None or not skipped.shards:
        return
    logger.warning("%s: %d of %d shards are skipped", dataset.uri, len(skipped.shards), len(shards))
    for number, shard in enumerate(shards):
        if shard.name in skipped.shards:
            images, labels = read_verified(dataset, shards[stand_in(dataset, number, skipped)])
            rows = np.arange(shard.rows) % len(images)
            put(shard.first_row, images[rows], labels[rows])
