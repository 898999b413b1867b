"""Lists of noise levels, on the host."""

from __future__ import annotations

import math
from typing import Any

import torch

from edm_ray.diffusion.denoiser import AtLevel, as_denoiser


def known_range(denoiser: Any) -> tuple[float, float]:
    """The lowest and the highest noise level that the denoiser knows."""
    if denoiser is None:
        return 0.0, math.inf
    known = denoiser if isinstance(denoiser, AtLevel) else as_denoiser(denoiser)
    return float(known.sigma_min), float(known.sigma_max)


def edm_levels(low: float, high: float, count: int, rho: float) -> list[float]:
    """``count`` >= 2 noise levels from high down to low, equation 5."""
    inverse = 1 / rho
    share = torch.arange(count, dtype=torch.float64) / (count - 1)
    levels: list[float] = ((high**inverse + share * (low**inverse - high**inverse)) ** rho).tolist()
    return levels


def rounded(levels: list[float], denoiser: Any) -> list[float]:
    """Noise levels that the denoiser knows, on the host."""
    if denoiser is None:
        return levels
    known = denoiser if isinstance(denoiser, AtLevel) else as_denoiser(denoiser)
    result: list[float] = known.round_sigma(torch.tensor(levels, dtype=torch.float64)).tolist()
    return result


def distinct(levels: list[float]) -> list[float]:
    """Without equal neighbours, which rounding to a grid of noise levels can make."""
    return [level for i, level in enumerate(levels) if i == 0 or level < levels[i - 1]]
