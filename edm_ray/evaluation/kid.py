"""Kernel Inception Distance (Binkowski et al. 2018): the unbiased squared MMD with k(x, y) = (x.y / d + 1)^3.

Inner products of fixed-point features are sums of integers below 2^53, so they are the same for any blocking.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edm_ray.errors import InputError
from edm_ray.evaluation.moments import Array

Features = npt.NDArray[np.int32]

SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 2020
"""As in torch-fidelity."""
MAX_PAIRED = 10_000
"""All pairs are formed of so many images at most: time grows with the square."""
BLOCK = 1000


@dataclass(frozen=True, kw_only=True)
class KidEstimate:
    """A KID and what is known of it. Unbiased at any n, so it may be negative."""

    mean: float
    """Mean over the random subsets, as torch-fidelity reports it."""
    std: float
    """Standard deviation over the subsets. They overlap, so it is not an error of the mean."""
    subsets: int
    subset_size: int
    all_pairs: float
    """From all pairs of the first ``n_paired`` images and the reference's features: no subsets, no luck."""
    se: float
    """Jackknife standard error of ``all_pairs`` over the groups of images; the reference is taken as it is."""
    groups: int
    n_paired: int
    n: int
    n_reference: int

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def kernel(a: Array, b: Array, scale_bits: int) -> Array:
    """(x.y / d + 1)^3 for rows of a [n, d] and b [m, d], fixed-point integers held in float64 -> [n, m]."""
    products = a @ b.T
    base: Array = products * (4.0**-scale_bits / a.shape[1]) + 1.0
    return base * base * base


def unbiased_mmd2(a: Array, b: Array, scale_bits: int) -> float:
    """Squared maximum mean discrepancy of n rows and m rows, without the pairs of a row with itself (equation 4)."""
    n, m = len(a), len(b)
    within_a, within_b = kernel(a, a, scale_bits), kernel(b, b, scale_bits)
    same_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    same_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(same_a + same_b - 2.0 * kernel(a, b, scale_bits).mean())


def subset_kids(
    features: Features, reference: Features, scale_bits: int, subsets: int, size: int, seed: int = SUBSET_SEED
) -> Array:
    """KID of each random subset, [subsets]. Which rows: a function of (seed, n, m, size), the same as torch-fidelity's,
    so that numbers compare with those of others."""
    rows = np.random.RandomState(seed)  # a stream that NumPy keeps as it is
    kids = np.empty(subsets)
    for i in range(subsets):
        a = features[rows.choice(len(features), size, replace=False)].astype(np.float64)
        b = reference[rows.choice(len(reference), size, replace=False)].astype(np.float64)
        kids[i] = unbiased_mmd2(a, b, scale_bits)
    return kids


def group_kernel_sums(
    features: Features, groups: npt.NDArray[np.int64], count: int, reference: Features, scale_bits: int
) -> tuple[Array, Array, float]:
    """Kernel sums from which KID without any group follows.

    groups: [n] in 0..count-1. Returns (sums between groups [count, count] without the pairs of a row with itself,
    sums with the reference [count], sum within the reference without such pairs). Memory: BLOCK x max(n, m).
    """
    member = np.zeros((len(features), count))
    member[np.arange(len(features)), groups] = 1.0
    within, across, inside = np.zeros((count, count)), np.zeros(count), 0.0
    a, b = features.astype(np.float64), reference.astype(np.float64)
    for first in range(0, len(a), BLOCK):
        part = slice(first, first + BLOCK)
        block = kernel(a[part], a, scale_bits)
        block[np.arange(len(block)), np.arange(first, first + len(block))] = 0.0
        within += member[part].T @ (block @ member)
        across += member[part].T @ kernel(a[part], b, scale_bits).sum(axis=1)
    for first in range(0, len(b), BLOCK):
        block = kernel(b[first : first + BLOCK], b, scale_bits)
        block[np.arange(len(block)), np.arange(first, first + len(block))] = 0.0
        inside += float(block.sum())
    return within, across, inside


def kid(
    features: Features,
    seeds: npt.NDArray[np.int64],
    reference: Features,
    scale_bits: int,
    num_groups: int,
    subsets: int = SUBSETS,
    subset_size: int | None = None,
) -> KidEstimate:
    """KID of int32 [n, d] features against int32 [m, d] of the reference; jackknife groups are seed mod num_groups.

    subset_size None: 1000 as in torch-fidelity, or all rows where there are fewer; it is part of the result.
    Raises InputError when there are fewer rows than one subset takes, or than the jackknife needs.
    """
    n, m = len(features), len(reference)
    size = min(SUBSET_SIZE, n, m) if subset_size is None else subset_size
    if not 2 <= size <= min(n, m):
        raise InputError(f"KID with subsets of {size} needs 2 <= size <= {min(n, m)}: {n} images, {m} of the reference")
    guard_exact(features, reference)
    kids = subset_kids(features, reference, scale_bits, subsets, size)
    chosen, groups = features[:MAX_PAIRED], seeds[:MAX_PAIRED] % num_groups
    sizes = np.bincount(groups, minlength=num_groups)
    within, across, inside = group_kernel_sums(chosen, groups, num_groups, reference, scale_bits)

    def without(left_out: Array) -> float:
        """KID without the groups marked 1."""
        keep = 1.0 - left_out
        count = float(keep @ sizes)
        same = float(keep @ within @ keep) / (count * (count - 1.0))
        return same + inside / (m * (m - 1)) - 2.0 * float(keep @ across) / (count * m)

    lo = np.array([without(row) for row in np.eye(num_groups)])
    return KidEstimate(
        mean=float(kids.mean()),
        std=float(kids.std()),
        subsets=subsets,
        subset_size=size,
        all_pairs=without(np.zeros(num_groups)),
        se=math.sqrt((num_groups - 1) / num_groups * float(((lo - lo.mean()) ** 2).sum())),
        groups=num_groups,
        n_paired=len(chosen),
        n=n,
        n_reference=m,
    )


def guard_exact(*features: Features, factor: float = 1.0) -> None:
    """Inner products are exact while ``factor`` times no row's squared length reaches 2^53 (Cauchy-Schwarz)."""
    for part in features:
        for first in range(0, len(part), BLOCK):
            values = part[first : first + BLOCK].astype(np.float64)
            if factor * float(np.einsum("nd,nd->n", values, values).max()) >= 2.0**53:
                raise OverflowError("a feature's squared length reaches 2^53: inner products would be inexact")
