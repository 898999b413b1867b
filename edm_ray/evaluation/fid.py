"""Frechet distance between feature moments (Heusel et al. 2017), its bias and its error by the jackknife."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from edm_ray.errors import InputError
from edm_ray.evaluation.moments import Array, GroupSums, Moments
from edm_ray.evaluation.published import PublishedMoments


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


class FidReference:
    """Reference moments with a root L of their covariance, S_r = L L^T, worked out once.

    L = V sqrt(lambda) from the eigendecomposition, without the columns that are zero to rounding: a reference of few
    images has few. Algebra is done with one thread: with more the last bits of eigenvalues depend on their number.
    """

    def __init__(self, moments: Moments | PublishedMoments) -> None:
        self.moments, self.hash = moments, moments.hash
        self.mean, covariance = moments.mean, moments.covariance
        with _blas().limit(limits=1):
            values, vectors = np.linalg.eigh(covariance)
        # Largest first: eigvalsh reduces L^T S L from its end, and would lose small eigenvalues that lie at its top.
        values, vectors = values[::-1], vectors[:, ::-1]
        kept = values > values[0] * len(values) * np.finfo(np.float64).eps
        self.root: Array = np.ascontiguousarray(vectors[:, kept] * np.sqrt(values[kept]))
        self.trace = float(np.trace(covariance))

    def distance(self, moments: Moments) -> float:
        """|mu - mu_r|^2 + tr(S + S_r) - 2 tr((L^T S L)^(1/2)).

        L^T S L is symmetric and has the eigenvalues of S S_r, so the trace of the root of that product is a sum of
        square roots: no matrix root, nothing complex.
        """
        self.moments._require_like(moments)
        covariance = moments.covariance
        with _blas().limit(limits=1):
            values = np.linalg.eigvalsh(self.root.T @ covariance @ self.root)
        gap = moments.mean - self.mean
        cross = float(np.sqrt(np.maximum(values, 0.0)).sum())
        return float(gap @ gap) + float(np.trace(covariance)) + self.trace - 2.0 * cross


_recent: dict[str, FidReference] = {}


def fid_reference(moments: Moments | PublishedMoments) -> FidReference:
    """FidReference of these moments; the last two are kept, since a process measures many samplers against one."""
    key = moments.hash
    if key not in _recent:
        while len(_recent) >= 2:
            del _recent[next(iter(_recent))]
        _recent[key] = FidReference(moments)
    return _recent[key]


def interval_95(value: float, se: float, groups: int) -> tuple[float, float]:
    """95 % interval from a standard error over ``groups`` jackknife groups: Student's t with groups - 1 degrees."""
    from scipy.stats import t as student  # half a second, which every worker of a training would wait for

    half = float(student.ppf(0.975, groups - 1)) * se
    return value - half, value + half


def frechet_distance(a: Moments, b: Moments) -> float:
    """FID between two sets of features."""
    return FidReference(b).distance(a)


@dataclass(frozen=True, kw_only=True)
class FidEstimate:
    """An FID and what is known of it. Comparable only with estimates of equal n, reference and extractor."""

    fid: float
    """The plain FID of all n images."""
    debiased: float
    """Jackknife estimate of the FID of infinitely many images: FID falls like 1 / n."""
    se: float
    """Jackknife standard error."""
    n: int
    leave_one_out: tuple[float, ...]
    """FID without each group of images; groups are the same seeds for all samplers, so differences can be paired."""
    reference: str
    """Hash of the reference's moments."""
    extractor: str

    def __float__(self) -> float:
        return self.fid

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "leave_one_out": list(self.leave_one_out)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FidEstimate:
        return cls(**{**content, "leave_one_out": tuple(content["leave_one_out"])})

    def describe(self) -> str:
        return f"FID {self.fid:.3f} +- {self.se:.3f} (n={self.n}), debiased {self.debiased:.3f}"


def jackknife_fid(groups: Sequence[Moments], reference: FidReference) -> FidEstimate:
    """FID of all groups together, with bias and standard error from leaving out one group at a time. Groups should be
    of about equal size."""
    fid, *lo = jackknife_distances(groups, reference, (None, *range(len(groups))))
    return estimate_of(fid, lo, sum(group.n for group in groups), reference.hash, reference.moments.extractor)


def jackknife_distances(
    groups: Sequence[Moments], reference: FidReference, without: Sequence[int | None]
) -> list[float]:
    """For each number in ``without`` the FID of all groups but that one (None: of all)."""
    everything = Moments.merge(*groups)
    return [reference.distance(everything if k is None else everything.without(groups[k])) for k in without]


def estimate_of(fid: float, lo: Sequence[float], n: int, reference: str, extractor: str) -> FidEstimate:
    """J = K FID - (K - 1) mean(lo); se^2 = (K - 1) / K sum (lo_k - mean(lo))^2, where lo_k leaves out the k-th of K."""
    count, values = len(lo), np.array(lo)
    if count < 2:
        raise InputError(f"the jackknife needs 2 groups or more, got {count}")
    return FidEstimate(
        fid=fid,
        debiased=float(count * fid - (count - 1) * values.mean()),
        se=float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())),
        n=n,
        leave_one_out=tuple(float(value) for value in lo),
        reference=reference,
        extractor=extractor,
    )


def group_moments(
    features: npt.NDArray[np.int32], seeds: npt.NDArray[np.int64], num_groups: int, extractor: str, scale_bits: int
) -> list[Moments]:
    """Moments of ``num_groups`` groups of images, group = seed mod num_groups."""
    sums = GroupSums(num_groups, extractor, scale_bits)
    sums.add(features, seeds)
    return sums.groups()


def paired_difference(a: FidEstimate, b: FidEstimate) -> tuple[float, float]:
    """Difference of the debiased FIDs a - b and its standard error, using that both saw the same seeds.

    Raises InputError when the two are not comparable.
    """
    for name in ("n", "reference", "extractor"):
        if getattr(a, name) != getattr(b, name):
            raise InputError(f"FIDs of different {name} cannot be compared: {getattr(a, name)} and {getattr(b, name)}")
    if len(a.leave_one_out) != len(b.leave_one_out):
        raise InputError("FIDs with different numbers of jackknife groups cannot be paired")
    gaps = np.array(a.leave_one_out) - np.array(b.leave_one_out)
    count = len(gaps)
    return a.debiased - b.debiased, math.sqrt((count - 1) / count * float(((gaps - gaps.mean()) ** 2).sum()))
