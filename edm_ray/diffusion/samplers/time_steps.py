"""Time steps: which noise levels a sampler visits (Table 1, "Time steps")."""

from __future__ import annotations

import math
from typing import Any

import torch

from edm_ray.diffusion.noise import VP, Path, iddpm_grid, make_path
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.errors import InputError


def edm_levels(low: float, high: float, count: int, rho: float) -> list[float]:
    """``count`` >= 2 noise levels from high down to low, equation 5."""
    inverse = 1 / rho
    share = torch.arange(count, dtype=torch.float64) / (count - 1)
    levels: list[float] = ((high**inverse + share * (low**inverse - high**inverse)) ** rho).tolist()
    return levels


def noise_levels(settings: SamplerSettings, denoiser: Any) -> list[float]:
    """sigma_0 > ... > sigma_{N-1} > 0, rounded to what the denoiser knows (equal neighbours can come of that).

    Raises InputError when the iDDPM grid has fewer levels in the range than ``num_steps``.
    """
    low, high = settings.sigma_range(denoiser)
    count = settings.num_steps
    shares = [i / (count - 1) for i in range(count)]
    if settings.discretization == "vp":
        vp = VP.from_range(low, high, settings.epsilon_s)
        levels = [vp.sigma(1 + share * (settings.epsilon_s - 1)) for share in shares]
    elif settings.discretization == "ve":
        levels = [math.sqrt(high**2 * (low**2 / high**2) ** share) for share in shares]
    elif settings.discretization == "iddpm":
        grid = grid_levels(settings, low, high)
        if len(grid) < count:
            raise InputError(
                f"sampler.num_steps={count} is not allowed: at most {len(grid)}, "
                f"the noise levels of the iddpm grid in [{low}, {high}]"
            )
        levels = [grid[round((len(grid) - 1) / (count - 1) * i)] for i in range(count)]
    else:
        levels = edm_levels(low, high, count, settings.rho)
    return rounded(levels, denoiser)


def grid_levels(settings: SamplerSettings, low: float, high: float) -> list[float]:
    """The levels of the iddpm grid in [low, high], descending."""
    return [u for u in iddpm_grid(settings.num_train_steps, settings.c_1, settings.c_2) if low <= u <= high]


def rounded(levels: list[float], denoiser: Any) -> list[float]:
    """Noise levels that the denoiser knows, on the host."""
    if not hasattr(denoiser, "round_sigma"):
        return levels
    result: list[float] = denoiser.round_sigma(torch.tensor(levels, dtype=torch.float64)).tolist()
    return result


def path_of(settings: SamplerSettings, denoiser: Any) -> Path:
    """sigma(t) and s(t) of these settings; the betas of vp are solved from the range in use."""
    low, high = settings.sigma_range(denoiser)
    return make_path(settings.schedule, settings.scaling, low, high, settings.epsilon_s)


def time_steps(settings: SamplerSettings, denoiser: Any) -> torch.Tensor:
    """t_0 > ... > t_{N-1} > t_N = 0: float64 [N + 1] on the host; t = sigma for the linear schedule."""
    path = path_of(settings, denoiser)
    times = [path.sigma_inv(level) for level in noise_levels(settings, denoiser)]
    return torch.tensor([*times, 0.0], dtype=torch.float64)
