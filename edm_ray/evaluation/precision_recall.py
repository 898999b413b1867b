"""Improved precision and recall (Kynkaanniemi et al. 2019): a set's manifold is the union of balls around its features,
each reaching to the k-th nearest feature of its own set.

Squared distances of fixed-point features are integers below 2^53, so no comparison depends on rounding or blocking.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_ray.errors import InputError
from edm_ray.evaluation.kid import Features, guard_exact
from edm_ray.evaluation.moments import Array

NEIGHBOURHOOD = 3
MAX_IMAGES = 10_000
"""Of the images the first so many are taken: time grows with the square."""
BLOCK_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Shares in 0..1. Both depend on the two numbers of images; compare at equal n only."""

    precision: float
    """Share of the images that lie in a ball of the reference: are they realistic?"""
    recall: float
    """Share of the reference that lies in a ball of the images: is everything covered?"""
    neighbourhood: int
    n: int
    n_reference: int

    @property
    def f_score(self) -> float:
        """Harmonic mean of the two."""
        total = self.precision + self.recall
        return 2.0 * self.precision * self.recall / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "f_score": self.f_score}


def squared_distances(a: Array, b: Array, b_lengths: Array) -> Array:
    """[n, m] between rows, in units of the grid squared: exact integers. b_lengths: squared lengths of b's rows [m]."""
    result: Array = a @ b.T
    result *= -2.0
    result += np.einsum("nd,nd->n", a, a)[:, None]
    result += b_lengths[None, :]
    return result


def _blocks(rows: int, columns: int) -> list[slice]:
    """Slices of rows such that one block of distances stays below BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (8 * columns))
    return [slice(first, first + size) for first in range(0, rows, size)]


def radii(features: Array, neighbourhood: int) -> Array:
    """Squared distance of each row [n, d] to its k-th nearest other row, [n]."""
    lengths = np.einsum("nd,nd->n", features, features)
    result = np.empty(len(features))
    for part in _blocks(len(features), len(features)):
        distances = squared_distances(features[part], features, lengths)
        # The row itself, at distance 0, is the first.
        result[part] = np.partition(distances, neighbourhood, axis=1)[:, neighbourhood]
    return result


def covered(points: Array, centres: Array, centre_radii: Array) -> float:
    """Share of the points [n, d] that lie within the ball of any centre [m, d]."""
    lengths = np.einsum("nd,nd->n", centres, centres)
    count = 0
    for part in _blocks(len(points), len(centres)):
        distances = squared_distances(points[part], centres, lengths)
        count += int((distances <= centre_radii).any(axis=1).sum())
    return count / len(points)


def precision_recall(features: Features, reference: Features, neighbourhood: int = NEIGHBOURHOOD) -> PrecisionRecall:
    """Of int32 [n, d] features (the first MAX_IMAGES) against int32 [m, d] of the reference.

    Raises InputError when a set has no k-th neighbour.
    """
    features = features[:MAX_IMAGES]
    if min(len(features), len(reference)) <= neighbourhood:
        raise InputError(
            f"precision and recall with k={neighbourhood} need {neighbourhood + 1} images or more, got {len(features)} "
            f"and {len(reference)} of the reference"
        )
    guard_exact(features, reference, factor=4.0)  # a distance is at most twice the longest row
    a, b = features.astype(np.float64), reference.astype(np.float64)
    return PrecisionRecall(
        precision=covered(a, b, radii(b, neighbourhood)),
        recall=covered(b, a, radii(a, neighbourhood)),
        neighbourhood=neighbourhood,
        n=len(a),
        n_reference=len(b),
    )
