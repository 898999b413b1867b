"""Predictor-corrector sampling (Song et al. 2021): a Langevin step, then a reverse diffusion step.

The schedule is not read: both steps are between noise levels. scaling "none" is Song's method for VE, "vp" his for VP,
where a step keeps a share alpha = (s(now) / s(next))^2 of the variance. The corrector's step size uses the norms of
each image instead of their mean over the batch, so that an image does not depend on the others.
"""

from __future__ import annotations

import itertools

import torch

from edm_ray.diffusion.samplers.common import Denoiser, NoiseSource, denoise
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import noise_levels


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
        kept = (1 + following**2) / (1 + level**2) if scaled else 1.0
        score = (denoise(denoiser, x, level, class_labels) - x) / level**2
        n = noise(i, draw=1).to(x)
        ratio = n.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(1e-300)
        size = (2 * kept * (settings.snr * ratio) ** 2).reshape(-1, 1, 1, 1)
        x = x + size * score + (2 * size).sqrt() * settings.s_noise * n
        denoised = denoise(denoiser, x, level, class_labels)
        if following == 0:
            return denoised
        score, n = (denoised - x) / level**2, noise(i).to(x) * settings.s_noise
        if scaled:
            s, s_next = (1 + level**2) ** -0.5, (1 + following**2) ** -0.5
            x = ((2 - kept**0.5) * s * x + (1 - kept) / s * score + (1 - kept) ** 0.5 * n) / s_next
        else:
            variance = level**2 - following**2
            x = x + variance * score + variance**0.5 * n
    raise AssertionError("the last noise level is 0")
