"""Euler-Maruyama on the reverse-time SDE of Song et al. 2021, for any schedule and scaling.

dx = (s'/s) x dt + 2 s (sigma'/sigma) (x/s - D(x/s; sigma)) dt + s sqrt(2 sigma sigma') dw, t running down.
"""

from __future__ import annotations

import itertools

import torch

from edm_ray.diffusion.noise import Path
from edm_ray.diffusion.samplers.common import Denoiser, NoiseSource, denoise
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import path_of, time_steps


def drift_step(
    denoiser: Denoiser, x: torch.Tensor, start: float, end: float, path: Path, class_labels: torch.Tensor | None
) -> torch.Tensor:
    """The mean of one step from time start down to time end."""
    sigma, s, rate = path.sigma(start), path.s(start), path.sigma_deriv(start)
    denoised = denoise(denoiser, x / s, sigma, class_labels)
    drift = (path.s_deriv(start) / s) * x + (2 * rate / sigma) * (x - s * denoised)
    return x + (end - start) * drift


def sample_euler_maruyama(
    denoiser: Denoiser,
    latents: torch.Tensor,
    settings: SamplerSettings,
    class_labels: torch.Tensor | None,
    noise: NoiseSource,
) -> torch.Tensor:
    """Latents -> images, float64 [B, C, H, W]; step i uses noise(i); the last step, to noise level 0, is D itself."""
    path = path_of(settings, denoiser)
    t = time_steps(settings, denoiser).tolist()
    x = latents.to(torch.float64) * (path.sigma(t[0]) * path.s(t[0]))
    for i, (start, end) in enumerate(itertools.pairwise(t[:-1])):
        spread = path.s(start) * (2 * path.sigma(start) * path.sigma_deriv(start) * (start - end)) ** 0.5
        x = drift_step(denoiser, x, start, end, path, class_labels) + noise(i).to(x) * (spread * settings.s_noise)
    return denoise(denoiser, x / path.s(t[-2]), path.sigma(t[-2]), class_labels)
