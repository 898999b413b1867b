"""How much an FID owes to the training and how much to the images: one sampler with the models of several trainings."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate, paired_difference, standard_error

LEVEL = 0.05
"""Trainings are said to differ where sampling alone gives so much spread with at most this probability."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """FIDs of k models that differ in their training only, of images of the same seeds.

    Of model i the FID is m + t_i + c + e_i: t_i of its training, c of the seeds, which all models share, and e_i of
    what its own images make of them.
    """

    fids: tuple[float, ...]
    mean: float
    between: float
    """Standard deviation of the FIDs, with k - 1 degrees of freedom: of t_i + e_i."""
    sampling: float
    """Of e_i alone, from the paired differences: e_i - e_j has the variance 2 ``sampling`` ** 2."""
    shared: float
    """Standard error that c gives the mean."""
    low: float
    high: float
    """95 % interval of m, the mean over all trainings and all images: Student's t with k - 1 degrees of freedom for
    what trainings differ in, and in quadrature that of the groups of images for c."""
    differ: bool
    """Whether the FIDs differ by more than sampling explains (F test at ``LEVEL``)."""
    n: int

    @property
    def trainings(self) -> float:
        """Standard deviation of t_i: what is left when sampling's share is taken off; 0 where nothing is."""
        return math.sqrt(max(0.0, self.between**2 - self.sampling**2))

    def sentence(self) -> str:
        """For people."""
        seen = f"sd {self.between:.3f} between {len(self.fids)} trainings; sampling alone gives {self.sampling:.3f}"
        if not self.differ:
            return f"No difference between the trainings is seen: {seen}."
        return f"The trainings differ by more than sampling explains: {seen}, so {self.trainings:.3f} is theirs."

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "trainings": self.trainings}


def spread(estimates: Sequence[FidEstimate]) -> Spread:
    """Of the models of two trainings or more. Raises InputError for fewer, and for FIDs that are not comparable."""
    from scipy.stats import f as fisher  # half a second, which every worker of a training would wait for
    from scipy.stats import t as student

    count = len(estimates)
    if count < 2:
        raise InputError(f"a spread between trainings needs 2 models or more, got {count}")
    pairs = [paired_difference(a, b)[1] ** 2 for a, b in itertools.combinations(estimates, 2)]
    sampling = math.sqrt(float(np.mean(pairs)) / 2)
    fids = [estimate.fid for estimate in estimates]
    mean, between = float(np.mean(fids)), float(np.std(fids, ddof=1))
    groups = len(estimates[0].influence)
    together = standard_error(
        [float(np.mean(shares)) for shares in zip(*[e.influence for e in estimates], strict=True)]
    )
    shared = math.sqrt(max(0.0, together**2 - sampling**2 / count))
    halves = (student.ppf(0.975, count - 1) * between / math.sqrt(count), student.ppf(0.975, groups - 1) * shared)
    half = math.hypot(*map(float, halves))
    bound = float(fisher.ppf(1 - LEVEL, count - 1, groups - 1))
    return Spread(
        fids=tuple(fids),
        mean=mean,
        between=between,
        sampling=sampling,
        shared=shared,
        low=mean - half,
        high=mean + half,
        differ=between**2 > bound * sampling**2,
        n=estimates[0].n,
    )
