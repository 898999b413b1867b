"""Time steps: which noise levels a sampler visits."""

from __future__ import annotations

from typing import Any

import torch

from edm_ray.diffusion.samplers.settings import SamplerSettings


def time_steps(settings: SamplerSettings, denoiser: Any) -> torch.Tensor:
    """t_0 > ... > t_{N-1} > t_N = 0: float64 [N + 1] on the host (equation 5; sigma(t) = t)."""
    low, high = settings.sigma_range(denoiser)
    share = torch.arange(settings.num_steps, dtype=torch.float64) / (settings.num_steps - 1)
    inverse = 1 / settings.rho
    levels = (high**inverse + share * (low**inverse - high**inverse)) ** settings.rho
    if hasattr(denoiser, "round_sigma"):
        levels = denoiser.round_sigma(levels)
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
