"""Weights of Adams methods with steps of any width: integrals of the polynomial through values at given nodes.

A step runs from v = 0 to v = 1; earlier values lie at v < 0, a value at the end of the step at v = 1. All on the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np


def weights(nodes: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """w with sum_j w_j p(v_j) = the integral of p, for polynomials p of degree below the number of nodes.

    moments: the integrals of 1, v, v^2, ..., as many as nodes.
    """
    return _solved(tuple(nodes), tuple(moments))


@functools.lru_cache(maxsize=1024)
def _solved(nodes: tuple[float, ...], moments: tuple[float, ...]) -> tuple[float, ...]:
    """Remembered: every batch of a sampler has the same steps."""
    return tuple(np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist())


def plain_moments(count: int) -> list[float]:
    """Integrals of v^k over the step, k < count."""
    return [1 / (k + 1) for k in range(count)]


def exponential_moments(z: float, count: int) -> list[float]:
    """Integrals of z exp(-z (1 - v)) v^k over the step, k < count, z > 0: what an exponential integrator weighs by."""
    if z < 1:  # the recursion would cancel; a series does not
        return [z * _series(z, k) for k in range(count)]
    moments = [-math.expm1(-z)]
    for k in range(1, count):
        moments.append(1 - k / z * moments[-1])
    return moments


def _series(z: float, k: int) -> float:
    """sum_n (-z)^n k! / (k + 1 + n)!"""
    term = total = 1 / (k + 1)
    for n in range(1, 25):
        term *= -z / (k + 1 + n)
        total += term
    return total
