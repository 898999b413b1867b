"""The training images nearest to a sample, in pixels or in an extractor's features: is it a copy?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edm_ray.errors import InputError
from edm_ray.evaluation.kid import guard_exact
from edm_ray.evaluation.moments import Array
from edm_ray.evaluation.precision_recall import squared_distances

BLOCK = 4096


def nearest(
    queries: npt.NDArray[np.int32], candidates: npt.NDArray[np.int32], count: int
) -> tuple[npt.NDArray[np.int64], Array]:
    """Rows of candidates [m, d] nearest to each query [n, d], nearest first; of equal distances the lower row first.

    Returns indices [n, count] and distances [n, count]. Integers, so exact; memory grows with n x BLOCK, not with m.
    Raises InputError when there are fewer candidates than asked for.
    """
    if not 1 <= count <= len(candidates):
        raise InputError(f"{count} nearest images are asked for, there are {len(candidates)} to choose from")
    guard_exact(queries, factor=4.0)
    a = queries.astype(np.float64)
    best = np.full((len(a), count), np.inf)
    rows = np.zeros((len(a), count), np.int64)
    for first in range(0, len(candidates), BLOCK):
        part = candidates[first : first + BLOCK]
        guard_exact(part, factor=4.0)
        b = part.astype(np.float64)
        distances = np.concatenate([best, squared_distances(a, b, np.einsum("nd,nd->n", b, b))], axis=1)
        numbers = np.concatenate([rows, np.broadcast_to(np.arange(first, first + len(b)), (len(a), len(b)))], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        best, rows = np.take_along_axis(distances, order, axis=1), np.take_along_axis(numbers, order, axis=1)
    return rows, np.sqrt(best)


def pixel_rows(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """uint8 [N, C, H, W] -> int32 [N, C*H*W]: pixel space, in levels of 0..255."""
    return images.reshape(len(images), -1).astype(np.int32)
