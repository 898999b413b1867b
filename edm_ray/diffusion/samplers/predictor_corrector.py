"""Predictor-corrector sampling (Song et al. 2021): a Langevin step, then a reverse diffusion step.

The schedule is not read: both steps are between noise levels. scaling "none" is Song's method for VE, "vp" his for VP,
where a step keeps a share alpha = (s(now) / s(next))^2 of the variance. The corrector's step size uses the norms of
each image instead of their mean over the batch, so that an image does not depend on the others.
"""

from __future__ import annotations

import itertools
import math

import torch

from edm_ray.diffusion.samplers.common import Denoiser, NoiseSource, denoise
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import noise_levels


def kept_variance(level: float, following: float, scaled: bool) -> float:
    """alpha of a step of VP; 1 for VE."""
    return (1 + following**2) / (1 + level**2) if scaled else 1.0


def predict(
    x: torch.Tensor, denoised: torch.Tensor, n: torch.Tensor | float, level: float, following: float, scaled: bool
) -> torch.Tensor:
    """The reverse diffusion step with noise n; x without scaling, before and after."""
    score = (denoised - x) / level**2
    if not scaled:
        variance = level**2 - following**2
        return x + variance * score + math.sqrt(variance) * n
    s, s_next = 1 / math.sqrt(1 + level**2), 1 / math.sqrt(1 + following**2)
    kept = kept_variance(level, following, scaled)
    mean = (2 - math.sqrt(kept)) * s * x + (1 - kept) / s * score
    return (mean + math.sqrt(1 - kept) * n) / s_next


def sample_predictor_corrector(
    denoiser: Denoiser,
    latents: torch.Tensor,
    settings: SamplerSettings,
    class_labels: torch.Tensor | None,
    noise: NoiseSource,
) -> torch.Tensor:
    """Latents -> images, float64 [B, C, H, W]; step i uses noise(i) to predict, noise(i, draw=1) to correct.

    The last step, to noise level 0, is D itself.
    """
    levels = [*noise_levels(settings, denoiser), 0.0]
    scaled = settings.scaling == "vp"
    x = latents.to(torch.float64) * levels[0]  # without scaling, also between the steps of VP
    for i, (level, following) in enumerate(itertools.pairwise(levels)):
        kept = kept_variance(level, following, scaled)
        score = (denoise(denoiser, x, level, class_labels) - x) / level**2
        n = noise(i, draw=1).to(x)
        ratio = n.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(1e-300)
        size = (2 * kept * (settings.snr * ratio) ** 2).reshape(-1, 1, 1, 1)
        x = x + size * score + (2 * size).sqrt() * settings.s_noise * n
        denoised = denoise(denoiser, x, level, class_labels)
        if following == 0:
            return denoised
        x = predict(x, denoised, noise(i).to(x) * settings.s_noise, level, following, scaled)
    raise AssertionError("the last noise level is 0")
