"""What Euler and Heun do at each time step beyond the ODE: churn and restarts, decided before anything is sampled.

The samplers and the canonical form of settings read the same plan, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import edm_levels, noise_levels, rounded
from edm_ray.errors import InputError


@dataclass(frozen=True)
class Restart:
    """Up from time step ``index`` to the first of ``levels`` and down through the others, ``times`` times."""

    index: int
    levels: tuple[float, ...]
    """Descending, without the level of the time step itself."""
    times: int
    high: float
    """As set; the first of ``levels`` is this, rounded to what the denoiser knows."""


@dataclass(frozen=True)
class Plan:
    levels: list[float]
    """sigma_0 > ... > sigma_{N-1}."""
    raised: list[float]
    """The level that churn goes up to at each step; that of the step where it adds no noise."""
    restarts: list[Restart]
    """Those that add noise, in the order in which they happen."""

    @property
    def noisy(self) -> bool:
        return bool(self.restarts) or self.raised != self.levels


def plan_of(settings: SamplerSettings, denoiser: Any) -> Plan:
    """The plan of these settings for this denoiser. Raises InputError for restarts above what the denoiser knows."""
    levels = noise_levels(settings, denoiser)
    gammas = [settings.gamma(level) for level in levels]
    lifted = rounded([level * (1 + gamma) for level, gamma in zip(levels, gammas, strict=True)], denoiser)
    raised = [
        high if gamma > 0 and high > level else level for level, gamma, high in zip(levels, gammas, lifted, strict=True)
    ]
    return Plan(levels, raised, _restarts(settings, denoiser, levels))


def _restarts(settings: SamplerSettings, denoiser: Any, levels: list[float]) -> list[Restart]:
    """On reaching the time step nearest to low, never the first; one that would not go up does nothing and is left out.

    Equal ones in a row are one, done more often.
    """
    most = float(getattr(denoiser, "sigma_max", math.inf))
    restarts: list[Restart] = []
    for low, high, steps, times in settings.restarts:
        if high > most:
            raise InputError(f"sampler.restarts={settings.restarts!r} is not allowed: high at most {most}, the model's")
        index = min(range(1, len(levels)), key=lambda i: abs(levels[i] - low))
        if high <= levels[index]:
            continue
        inner = rounded(edm_levels(levels[index], high, steps + 1, settings.rho)[:-1], denoiser)
        if inner[0] > levels[index]:
            restarts.append(Restart(index, tuple(inner), times, high))
    merged: list[Restart] = []
    for each in sorted(restarts, key=lambda restart: restart.index):
        last = merged[-1] if merged else None
        if last and (last.index, last.levels, last.high) == (each.index, each.levels, each.high):
            merged[-1] = Restart(each.index, each.levels, last.times + each.times, each.high)
        else:
            merged.append(each)
    return merged
