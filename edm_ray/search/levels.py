"""Noise levels of a sampler written out, moved one at a time, and stretched to other numbers of steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError

WIDEST = math.log(4.0)
"""A move at either end of the levels is measured by the gap beside it, but by no more than this in ln sigma."""


def with_levels(sampler: Sampler, levels: Sequence[float], denoiser: Any = None) -> Sampler | None:
    """The sampler with these levels as ``sigmas``, in effective form; None where that is no sampler of this model."""
    try:
        changed = sampler.replace(sigmas=tuple(levels), num_steps=len(levels), sigma_min=None, sigma_max=None)
        return changed.effective(denoiser)
    except InputError:
        return None


def moved(levels: Sequence[float], index: int, share: float) -> list[float]:
    """One level moved by a share of its gap in ln sigma: > 0 towards the level before it, < 0 towards the one after.

    The share of a step between two levels is at most 1 in size, exclusively, so the levels keep descending.
    """
    logs = [math.log(level) for level in levels]
    gaps = [a - b for a, b in itertools.pairwise(logs)]
    above = gaps[index - 1] if index > 0 else min(gaps[0], WIDEST)
    below = gaps[index] if index < len(gaps) else min(gaps[-1], WIDEST)
    logs[index] += share * (above if share > 0 else below)
    return [math.exp(log) for log in logs]


def stretched(levels: Sequence[float], count: int) -> list[float]:
    """``count`` levels on the curve of these: ln sigma linear between them, the ends kept."""
    logs = [math.log(level) for level in levels]
    found = []
    for i in range(count):
        place = i / (count - 1) * (len(levels) - 1)
        left = min(int(place), len(levels) - 2)
        found.append(math.exp(logs[left] + (place - left) * (logs[left + 1] - logs[left])))
    return [levels[0], *found[1:-1], levels[-1]]
