"""DPM-Solver++(2M): Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling", 2022, algorithm 2.

Written for x = y + sigma n, lambda = -ln sigma: the linear part of the ODE is solved exactly, D extrapolated.
"""

from __future__ import annotations

import itertools
import math

import torch

from edm_ray.diffusion.samplers.common import Denoiser, denoise
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import noise_levels


def distinct(levels: list[float]) -> list[float]:
    """Without equal neighbours, which rounding to a grid of noise levels can make."""
    return [level for i, level in enumerate(levels) if i == 0 or level < levels[i - 1]]


def step_2m(
    x: torch.Tensor, level: float, following: float, denoised: torch.Tensor, before: tuple[torch.Tensor, float] | None
) -> torch.Tensor:
    """One step; before: D at the level before this one, and that level."""
    target = denoised
    if before is not None:
        previous, higher = before
        ratio = math.log(level / following) / math.log(higher / level)
        target = denoised + (denoised - previous) * (0.5 * ratio)
    return x * (following / level) + target * (1 - following / level)


def sample_dpmpp_2m(
    denoiser: Denoiser, latents: torch.Tensor, settings: SamplerSettings, class_labels: torch.Tensor | None
) -> torch.Tensor:
    """Latents -> images, float64 [B, C, H, W]; the last step is D itself."""
    levels = distinct(noise_levels(settings, denoiser))
    x = latents.to(torch.float64) * levels[0]
    before = None
    for level, following in itertools.pairwise(levels):
        denoised = denoise(denoiser, x, level, class_labels)
        x = step_2m(x, level, following, denoised, before)
        before = denoised, level
    return denoise(denoiser, x, levels[-1], class_labels)
