"""What may be said of FIDs on shared seeds: paired intervals, noise, and the probability of being the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edm_ray.evaluation.fid import FidEstimate, interval_95, paired_difference
from edm_ray.seeding import stream_key, uniform

Array = npt.NDArray[np.float64]
RESAMPLES = 4000
MOST_NEEDED = 10_000_000
"""Images that nobody would make to decide a difference."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Debiased FID of one minus that of another on the same seeds."""

    gap: float
    se: float
    low: float
    high: float
    """95 % interval: Student's t with as many degrees of freedom as groups of images less one."""


def difference(a: FidEstimate, b: FidEstimate) -> Difference:
    """a - b, paired. Raises InputError when they are not comparable."""
    gap, se = paired_difference(a, b)
    low, high = interval_95(gap, se, len(a.influence))
    return Difference(gap=gap, se=se, low=low, high=high)


def undecided(gap: Difference, n: int) -> str:
    """What could not be seen with n fresh images, and how many would show the difference found: its interval shrinks
    with the root of n."""
    reach = gap.high - gap.gap
    text = f"With {n:,} images differences below {reach:.3f} cannot be seen"
    needed = math.inf if gap.gap == 0 else n * (reach / gap.gap) ** 2
    if needed > MOST_NEEDED:
        return f"{text}; this one is too small to be worth deciding."
    return f"{text}; about {round_up(needed):,} would decide one of {abs(gap.gap):.3f}."


def round_up(count: float) -> int:
    """To two digits."""
    unit: int = 10 ** max(math.floor(math.log10(max(count, 1.0))) - 1, 0)
    return math.ceil(count / unit) * unit


def gap_in_words(gap: Difference | None) -> str:
    """A cell of a table."""
    return "-" if gap is None else f"{gap.gap:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def interval_in_words(gap: Difference) -> str:
    """Part of a sentence."""
    return f"difference {gap.gap:+.3f}, 95 % interval {gap.low:+.3f} to {gap.high:+.3f}"


def pseudo_values(estimate: FidEstimate) -> Array:
    """What each of K groups says of the FID: the debiased FID plus K times the group's influence. Their mean is the
    debiased FID, and the standard error of that mean is the estimate's."""
    values: Array = estimate.debiased + len(estimate.influence) * np.asarray(estimate.influence)
    return values


def probability_best(estimates: Mapping[str, FidEstimate], seed: int = 0) -> dict[str, float]:
    """Probability that each has the lowest FID of these, by a bootstrap of the groups they share.

    The groups are redrawn ``RESAMPLES`` times with keyed numbers; deviations are widened by sqrt(K / (K - 1)), which
    K draws lose. Exact ties are shared. Estimates of the same n and number of groups.
    """
    if not estimates:
        return {}
    values = np.stack([pseudo_values(estimate) for estimate in estimates.values()])
    groups = values.shape[1]
    draws = uniform(stream_key("probability best", seed), torch.arange(RESAMPLES), groups).numpy()
    mean = values.mean(axis=1, keepdims=True)
    spread = (values - mean) * math.sqrt(groups / (groups - 1))
    world = mean + spread[:, (draws * groups).astype(np.int64)].mean(axis=2)
    lowest = world == world.min(axis=0)
    share = (lowest / lowest.sum(axis=0)).mean(axis=1)
    return {label: float(value) for label, value in zip(estimates, share, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How noisy FIDs of ``n`` images are here."""

    n: int
    bias: float
    """(FID - debiased FID) n: the FID of n images is too high by bias / n."""
    se: float
    """Standard error of one FID (root mean square)."""
    paired_se: float
    """Median standard error of the paired difference of two of the settings."""
    spread: float
    """Range of the debiased FIDs."""

    def describe(self) -> str:
        return (
            f"noise at n={self.n}: standard error {self.se:.3g} of one FID, {self.paired_se:.3g} of a paired "
            f"difference; FIDs spread over {self.spread:.3g}; bias {self.bias:.3g} / n"
        )


def measure_noise(estimates: Sequence[FidEstimate]) -> Noise:
    """Noise seen in two settings or more on the same seeds."""
    pairs = [paired_difference(a, b)[1] for i, a in enumerate(estimates) for b in estimates[:i]]
    debiased = [estimate.debiased for estimate in estimates]
    return Noise(
        n=estimates[0].n,
        bias=float(np.mean([(estimate.fid - estimate.debiased) * estimate.n for estimate in estimates])),
        se=float(np.sqrt(np.mean([estimate.se**2 for estimate in estimates]))),
        paired_se=float(np.median(pairs)),
        spread=max(debiased) - min(debiased),
    )
