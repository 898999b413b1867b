"""Predictor-corrector sampling (Song et al. 2021): a Langevin step, then a reverse diffusion step.

Works on x = y + sigma n, so schedule and scaling do not act. The Langevin step size is that of Song et al. with the
norms of each image instead of their mean over the batch, so that an image does not depend on the others.
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
    x = latents.to(torch.float64) * levels[0]
    for i, (level, following) in enumerate(itertools.pairwise(levels)):
        score = (denoise(denoiser, x, level, class_labels) - x) / level**2
        n = noise(i, draw=1).to(x)
        ratio = n.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(1e-300)
        size = (2 * (settings.snr * ratio) ** 2).reshape(-1, 1, 1, 1)
        x = x + size * score + (2 * size).sqrt() * settings.s_noise * n
        denoised = denoise(denoiser, x, level, class_labels)
        if following == 0:
            return denoised
        variance = level**2 - following**2
        x = x + variance * (denoised - x) / level**2 + noise(i).to(x) * (variance**0.5 * settings.s_noise)
    raise AssertionError("the last noise level is 0")
