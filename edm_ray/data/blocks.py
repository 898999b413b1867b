"""The order of training for data larger than a node's cache: shuffled block by block, and still arithmetic.

An epoch is the shards in a permuted order, laid end to end. That line is cut into as many segments as there are lanes,
of exactly the lengths that the lanes have in this epoch; a lane walks along its segment in windows of a few shards,
each window permuted. So sample k of epoch e is a pure function of (seed, e, k), every epoch holds every sample once,
and a lane reads its own segment's shards and no others. `rank_positions` shares the lanes out, as for any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from edm_ray.data.order import Positions, permute, sample_indices


@dataclass(frozen=True)
class BlockOrder:
    """shard_rows: rows of each shard. lanes: as in `rank_positions`. xflip: every row has a mirror image too.

    block_shards: how many shards (of average size) a window of a lane spans.
    """

    shard_rows: tuple[int, ...]
    lanes: int
    xflip: bool = False
    block_shards: int = 2

    @property
    def copies(self) -> int:
        return 2 if self.xflip else 1

    @cached_property
    def samples(self) -> int:
        """Of an epoch."""
        return self.copies * sum(self.shard_rows)

    @cached_property
    def first_rows(self) -> Positions:
        return np.cumsum([0, *self.shard_rows], dtype=np.int64)

    def locate(self, positions: Positions, seed: int) -> tuple[Positions, Positions]:
        """Which row of the data set stands at each position, and whether mirrored: int64 [B], int64 [B] (0 or 1)."""
        places = self._places(positions, seed)
        epochs = positions // self.samples
        rows, mirrored = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, ends = self._line(int(epoch), seed)
            slot = np.searchsorted(ends, places[here], side="right")
            offset = places[here] - np.concatenate([[0], ends])[slot]
            mirrored[here], row = np.divmod(offset, np.asarray(self.shard_rows, np.int64)[order[slot]])
            rows[here] = self.first_rows[order[slot]] + row
        return rows, mirrored

    def shards_of(self, epoch: int, lane: int, seed: int) -> list[int]:
        """The shards whose rows stand at this lane's positions of the epoch, in the order in which it comes to them."""
        start, length = (
            int(part[0]) for part in self._segment(np.array([lane - epoch * self.samples], np.int64) % self.lanes)
        )
        if length == 0:
            return []
        order, ends = self._line(epoch, seed)
        first, last = np.searchsorted(ends, [start, start + length - 1], side="right")
        return [int(shard) for shard in order[first : last + 1]]

    def amplification(
        self, shard_bytes: Sequence[int], epoch: int, seed: int, world_size: int, ranks_per_node: int = 1
    ) -> list[float]:
        """Bytes that each node reads in an epoch, over its share of all bytes (lanes owned / lanes): 1 is ideal.

        A shard on the border of two lanes' segments is read by both, so it is about 1 + lanes / shards.
        """
        read = np.zeros(-(-world_size // ranks_per_node))
        owned = np.zeros_like(read)
        for lane in range(self.lanes):
            node = lane % world_size // ranks_per_node
            read[node] += sum(shard_bytes[shard] for shard in self.shards_of(epoch, lane, seed))
            owned[node] += 1 / self.lanes
        return [float(r / (o * sum(shard_bytes))) for r, o in zip(read, owned) if o > 0]

    def _segment(self, which: Positions) -> tuple[Positions, Positions]:
        """Start and length on the line of the segment of the positions whose number in the epoch is ``which`` modulo
        the lanes."""
        quotient, rest = divmod(self.samples, self.lanes)
        return which * quotient + np.minimum(which, rest), quotient + (which < rest).astype(np.int64)

    def _places(self, positions: Positions, seed: int) -> Positions:
        """Place on the epoch's line: the segment's start, the window in it, and the permuted place in the window."""
        assert positions.dtype == np.int64
        epoch, sample = np.divmod(positions, self.samples)
        walked, which = np.divmod(sample, self.lanes)
        start, length = self._segment(which)
        # Windows of one segment differ by one sample at most; i-th one begins at length * i // windows.
        aim = self.block_shards * self.samples / len(self.shard_rows)
        windows = np.maximum(1, np.rint(length / aim)).astype(np.int64)
        window = ((walked + 1) * windows - 1) // length
        begin = length * window // windows
        size = length * (window + 1) // windows - begin
        longest = self.samples // self.lanes + 1
        bound = -(-longest // max(1, int(np.rint((longest - 1) / aim))))  # no window is longer, in any epoch
        keys = (epoch * self.lanes + which) * longest + window
        return start + begin + permute(walked - begin, size, bound, keys, "window", seed)

    def _line(self, epoch: int, seed: int) -> tuple[Positions, Positions]:
        return _line(self.shard_rows, self.copies, epoch, seed)


@lru_cache(maxsize=8)
def _line(shard_rows: tuple[int, ...], copies: int, epoch: int, seed: int) -> tuple[Positions, Positions]:
    """Shards in the epoch's order, and where each one ends on the line: two int64 [S]."""
    count = len(shard_rows)
    order = sample_indices(epoch * count + np.arange(count, dtype=np.int64), count, seed, "shards")
    return order, np.cumsum(copies * np.asarray(shard_rows, np.int64)[order])
