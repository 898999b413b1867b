"""The order of training as arithmetic: sample k of epoch e is a pure function of (seed, e, k).

A position is an index into the endless sequence of training images; position p is sample ``p % n`` of epoch ``p // n``.
Nothing is stored and nothing is iterated, so resuming at any image count with any number of workers is exact and O(1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edm_ray.seeding import stream_key

_ROUNDS = 8
Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


def _mix(value: Words, key: Words | np.uint64) -> Words:
    """64-bit finaliser of SplitMix64 (Steele et al. 2014), keyed; uint64 arithmetic wraps by design."""
    z = value + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return z


def _feistel(x: Words, keys: Words, half_bits: int) -> Words:
    """A bijection of [0, 4^half_bits): a balanced Feistel network with one key per element and round."""
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = x >> shift, x & mask
    for r in range(_ROUNDS):
        left, right = right, left ^ (_mix(right, keys + np.uint64(r) * np.uint64(0x9E3779B97F4A7C15)) & mask)
    return (left << shift) | right


def permute(items: Positions, sizes: Positions, bound: int, keys: Positions, purpose: str, seed: int) -> Positions:
    """A keyed permutation of [0, sizes[i]) for each item: int64 [B] in [0, sizes) -> int64 [B] in [0, sizes).

    Items with the same key are permuted among each other, whichever of them are asked for; ``bound`` is at least as
    large as every size, and decides, with key and seed, which permutation it is: a Feistel bijection on the next power
    of four, walked until it lands inside.
    """
    half_bits = max(1, ((bound - 1).bit_length() + 1) // 2)
    with np.errstate(over="ignore"):
        mixed = _mix(keys.astype(np.uint64), np.uint64(stream_key(purpose, seed)))
        result, limits = _feistel(items.astype(np.uint64), mixed, half_bits), sizes.astype(np.uint64)
        while (outside := result >= limits).any():
            result[outside] = _feistel(result[outside], mixed[outside], half_bits)
    return result.astype(np.int64)


def sample_indices(positions: Positions, num_rows: int, seed: int, purpose: str = "order") -> Positions:
    """Which row of the data set stands at each position.

    positions: int64 [B] >= 0 -> int64 [B] in [0, num_rows). Every epoch is a permutation of the rows, each another one.
    """
    assert num_rows >= 1 and positions.dtype == np.int64
    epoch, sample = np.divmod(positions, num_rows)
    return permute(sample, np.full_like(sample, num_rows), num_rows, epoch, purpose, seed)


def rank_positions(images_seen: int, batch_size: int, rank: int, world_size: int, lanes: int) -> Positions:
    """This rank's positions of the global batch [images_seen, images_seen + batch_size): int64, ascending.

    A position belongs to lane ``position % lanes`` and a lane to rank ``lane % world_size``; the union of the ranks is
    the batch for any world size, and shares differ by as little as the lanes allow.
    """
    positions = np.arange(images_seen, images_seen + batch_size, dtype=np.int64)
    mine: Positions = positions[(positions % lanes) % world_size == rank]
    return mine


def shares(
    images_seen: int,
    total: int,
    batch_size: int,
    rank: int,
    world_size: int,
    lanes: int,
    micro_batch: int | None = None,
) -> Iterator[Positions]:
    """This rank's positions from ``images_seen`` up to ``total``, batch by batch, each in parts of ``micro_batch``."""
    for first in range(images_seen, total, batch_size):
        mine = rank_positions(first, batch_size, rank, world_size, lanes)
        size = micro_batch or max(1, len(mine))
        for start in range(0, len(mine), size):
            yield mine[start : start + size]
