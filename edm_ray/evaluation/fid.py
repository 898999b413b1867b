"""Frechet distance between feature moments (Heusel et al. 2017), its bias by the jackknife, and paired differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_ray.errors import InputError
from edm_ray.evaluation.moments import Array, Moments, one_thread
from edm_ray.evaluation.published import PublishedMoments


class FidReference:
    """Reference moments with a root L of their covariance, S_r = L L^T, worked out once.

    L = V sqrt(lambda) from the eigendecomposition, without the columns that are zero to rounding: a reference of few
    images has few. Algebra is done with one thread.
    """

    def __init__(self, moments: Moments | PublishedMoments) -> None:
        self.moments, self.hash = moments, moments.hash
        self.mean, covariance = moments.mean, moments.covariance
        with one_thread():
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
        with one_thread():
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
    """95 % interval from a standard error over ``groups`` groups: Student's t with groups - 1 degrees of freedom."""
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
    """Standard error, from the influences."""
    n: int
    influence: tuple[float, ...]
    """What each group of images adds to the FID, to first order; sums to zero. Groups are the same seeds for all
    samplers, so differences can be paired (`edm_ray.evaluation.influence`)."""
    reference: str
    """Hash of the reference's moments."""
    extractor: str

    def __float__(self) -> float:
        return self.fid

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "influence": list(self.influence)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FidEstimate:
        return cls(**{**content, "influence": tuple(content["influence"])})

    def bias_removed(self) -> str:
        """The debiased FID, which may come out below 0: with its 95 % interval where that reaches 0."""
        low, high = interval_95(self.debiased, self.se, len(self.influence))
        return f"{self.debiased:.3f}" + (f" ({low:.3f} to {high:.3f})" if low <= 0 else "")

    def describe(self) -> str:
        return f"FID {self.fid:.3f} +- {self.se:.3f} (n={self.n}), debiased {self.bias_removed()}"


def standard_error(influence: Sequence[float]) -> float:
    """Of a FID, or of a difference of two, from the influences of K groups: se^2 = K / (K - 1) sum c_k^2."""
    count, shares = len(influence), np.array(influence)
    if count < 2:
        raise InputError(f"a standard error needs 2 groups of images or more, got {count}")
    return math.sqrt(count / (count - 1) * float((shares**2).sum()))


def debiased_fid(groups: Sequence[Moments], everything: Moments, reference: FidReference) -> tuple[float, float]:
    """FID of all groups together, and J = K FID - (K - 1) mean(FID without the k-th of K). Groups should be of about
    equal size. Raises InputError for fewer than two."""
    count = len(groups)
    if count < 2:
        raise InputError(f"the jackknife needs 2 groups or more, got {count}")
    fid = reference.distance(everything)
    without = np.array([reference.distance(everything.without(group)) for group in groups])
    return fid, float(count * fid - (count - 1) * without.mean())


def paired_difference(a: FidEstimate, b: FidEstimate) -> tuple[float, float]:
    """Difference of the debiased FIDs a - b and its standard error, using that both saw the same seeds.

    Raises InputError when the two are not comparable.
    """
    for name in ("n", "reference", "extractor"):
        if getattr(a, name) != getattr(b, name):
            raise InputError(f"FIDs of different {name} cannot be compared: {getattr(a, name)} and {getattr(b, name)}")
    if len(a.influence) != len(b.influence):
        raise InputError("FIDs with influences of different numbers of groups cannot be paired")
    gaps = [one - other for one, other in zip(a.influence, b.influence, strict=True)]
    return a.debiased - b.debiased, standard_error(gaps)
