"""Mean and standard deviation of floats without rounding on the way, so that they depend on the values alone: not on
their order, on how they are cut into shards, or on who adds them up."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

UNIT_BITS = 400
"""Sums are whole numbers of 2^-400: the square of the least float32 is 2^-298, with 53 bits below its exponent."""
_AT_ONCE = 1 << 20
_LOW_BITS = 27


def exact_sum(values: np.ndarray) -> int:
    """The sum of float64 numbers, each 0 or of size 2^-340 to 2^300, in units of 2^-400.

    Numbers of one exponent are added as whole numbers: mantissas of 53 bits in two halves, whose sums stay below 2^53.
    """
    total = 0
    for first in range(0, values.size, _AT_ONCE):
        fraction, exponent = np.frexp(values.reshape(-1)[first : first + _AT_ONCE])
        mantissa = np.ldexp(fraction, 53).astype(np.int64)
        low, base = mantissa & ((1 << _LOW_BITS) - 1), int(exponent.min())
        halves = [np.bincount(exponent - base, weights=half) for half in (mantissa >> _LOW_BITS, low)]
        for place, (upper, lower) in enumerate(zip(*halves)):
            total += ((int(upper) << _LOW_BITS) + int(lower)) << (base + place - 53 + UNIT_BITS)
    return total


def channel_sums(latents: np.ndarray) -> list[tuple[int, int]]:
    """float16 or float32 [N, C, R, R] -> (sum, sum of squares) of each channel; in float64 their squares are exact."""
    wide = [latents[:, channel].astype(np.float64) for channel in range(latents.shape[1])]
    return [(exact_sum(values), exact_sum(values * values)) for values in wide]


def mean_std(total: int, squares: int, count: int) -> tuple[float, float]:
    """Of ``count`` numbers with these sums; exact up to here."""
    mean = Fraction(total, count << UNIT_BITS)
    return float(mean), math.sqrt(Fraction(squares, count << UNIT_BITS) - mean * mean)
