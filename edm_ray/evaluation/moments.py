"""Feature moments that are exact: sums of integers below 2^53, so any partition or order gives equal bits."""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from threadpoolctl import ThreadpoolController

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.documents import shortened_error

Array = npt.NDArray[np.float64]
_LIMIT = 2.0**53
ROWS_AT_ONCE = 1000
"""Rows of a group that wait for one product: each product costs a d x d sum beside."""


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def one_thread() -> AbstractContextManager[object]:
    """For algebra: with more threads the last bits of eigenvalues depend on their number."""
    limited: AbstractContextManager[object] = _blas().limit(limits=1)
    return limited


@dataclass(frozen=True, eq=False, kw_only=True)
class Moments:
    """n features on the grid 2^-scale_bits: their sum and sum of outer products, as integers held in float64."""

    n: int
    total: Array
    """[d]"""
    outer: Array
    """[d, d]"""
    scale_bits: int
    extractor: str
    """Identity of the extractor whose features they are."""

    @classmethod
    def of(cls, features: npt.NDArray[np.int32], extractor: str, scale_bits: int) -> Moments:
        """Moments of int32 [n, d] features of an extractor of this identity and grid."""
        values = features.astype(np.float64)
        moments = cls(
            n=len(values),
            total=values.sum(axis=0),
            outer=values.T @ values,
            scale_bits=scale_bits,
            extractor=extractor,
        )
        return moments._guarded()

    def _guarded(self) -> Moments:
        """Every entry of the outer products is bounded by the largest diagonal entry (Cauchy-Schwarz)."""
        if len(self.outer) and float(self.outer.diagonal().max()) >= _LIMIT:
            raise OverflowError(
                f"moments of {self.n} features exceed 2^53 at {self.scale_bits} fixed-point bits and would be inexact"
            )
        return self

    def _require_like(self, other: Moments) -> None:
        if (self.extractor, self.scale_bits) != (other.extractor, other.scale_bits):
            raise InputError(
                f"moments of extractor {self.extractor[:12]} and of {other.extractor[:12]} cannot be compared; "
                "make the reference again with the extractor in use"
            )

    @staticmethod
    def merge(*parts: Moments) -> Moments:
        """Moments of all images of the parts."""
        result = parts[0]
        for part in parts[1:]:
            result._require_like(part)
            result = Moments(
                n=result.n + part.n,
                total=result.total + part.total,
                outer=result.outer + part.outer,
                scale_bits=part.scale_bits,
                extractor=part.extractor,
            )._guarded()
        return result

    def without(self, part: Moments) -> Moments:
        """Moments of the images that are not in ``part``."""
        self._require_like(part)
        return Moments(
            n=self.n - part.n,
            total=self.total - part.total,
            outer=self.outer - part.outer,
            scale_bits=self.scale_bits,
            extractor=self.extractor,
        )

    @property
    def mean(self) -> Array:
        mean: Array = self.total / self.n / 2.0**self.scale_bits
        return mean

    @property
    def covariance(self) -> Array:
        """Sample covariance (n - 1)."""
        if self.n < 2:
            raise InputError(f"a covariance needs 2 images or more, got {self.n}")
        centred = self.outer - np.outer(self.total, self.total / self.n)
        covariance: Array = centred / (self.n - 1) / 4.0**self.scale_bits
        return covariance

    @property
    def hash(self) -> str:
        """sha256 of the numbers (not of a file: safetensors does not fix the order of its header)."""
        digest = hashlib.sha256(f"{self.n} {self.scale_bits} {self.extractor}".encode())
        for part in (self.total, self.outer):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """safetensors, with n, scale and extractor in its header."""
        header = {"n": str(self.n), "scale_bits": str(self.scale_bits), "extractor": self.extractor}
        content: bytes = safetensors.numpy.save({"total": self.total, "outer": self.outer}, metadata=header)
        return content

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Moments:
        try:
            arrays = safetensors.numpy.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            moments = cls(
                n=int(header["n"]),
                total=arrays["total"],
                outer=arrays["outer"],
                scale_bits=int(header["scale_bits"]),
                extractor=str(header["extractor"]),
            )
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
            raise IntegrityError(f"{where}: not a file of moments: {shortened_error(error)}") from error
        check_moments((moments.total, moments.outer), where)
        if moments.n < 1 or not 0 <= moments.scale_bits < 64:
            raise IntegrityError(f"{where}: moments of {moments.n} images at {moments.scale_bits} bits are none")
        return moments


def check_moments(arrays: tuple[Array, Array], where: str) -> None:
    """Raises IntegrityError unless they are float64 [d] and [d, d], finite."""
    vector, matrix = arrays
    if vector.ndim != 1 or matrix.shape != (len(vector),) * 2 or {vector.dtype, matrix.dtype} != {np.dtype(np.float64)}:
        raise IntegrityError(f"{where}: {vector.dtype} {vector.shape} and {matrix.dtype} {matrix.shape} are no moments")
    if not np.isfinite(vector).all() or not np.isfinite(matrix).all():
        raise IntegrityError(f"{where}: its numbers are not all finite")


class GroupSums:
    """Moments of groups of images (group = seed mod ``count``) that come in parts of any size. Memory depends on
    the number of groups and on d, not on the number of images."""

    def __init__(self, count: int, extractor: str, scale_bits: int) -> None:
        self.extractor, self.scale_bits = extractor, scale_bits
        self.waiting: list[list[npt.NDArray[np.int32]]] = [[] for _ in range(count)]
        self.sums: list[Moments | None] = [None] * count
        self.largest = 0
        """Of the features' absolute values, on their grid."""

    def add(self, features: npt.NDArray[np.int32], seeds: npt.NDArray[np.int64]) -> None:
        """int32 [n, d] features of the images with these seeds [n]."""
        if features.size:
            self.largest = max(self.largest, int(features.max()), -int(features.min()))
        for k, waiting in enumerate(self.waiting):
            waiting.append(features[seeds % len(self.waiting) == k])
            if sum(map(len, waiting)) >= ROWS_AT_ONCE:
                self._fold(k)

    def groups(self) -> list[Moments]:
        """Of all that came. Raises InputError when nothing did."""
        for k in range(len(self.waiting)):
            self._fold(k)
        found = [moments for moments in self.sums if moments is not None]
        if not found:
            raise InputError("no image, no moments")
        return found

    def _fold(self, k: int) -> None:
        if not self.waiting[k]:
            return
        rows, before = np.concatenate(self.waiting[k]), self.sums[k]
        self.waiting[k] = []
        moments = Moments.of(rows, self.extractor, self.scale_bits)
        self.sums[k] = moments if before is None else Moments.merge(before, moments)
