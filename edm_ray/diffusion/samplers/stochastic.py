"""Algorithm 2 of Karras et al. 2022: Heun's method with churn; without churn it is Algorithm 1 for sigma(t) = t."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import time_steps
from edm_ray.errors import InputError


def sample(
    denoiser: Callable[..., torch.Tensor],
    latents: torch.Tensor,
    settings: SamplerSettings,
    class_labels: torch.Tensor | None = None,
    noise: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sample images from latents.

    denoiser: D(x, sigma, class_labels) -> like x; sigma is float64 [B]. latents: unit normal [B, C, H, W].
    noise(step, draw=0): unit normal like latents; asked for only at steps that add noise.
    Returns float64 [B, C, H, W]. Noise levels are host numbers decided before the loop: no step waits for the device.
    Raises InputError when the settings add noise and there is no ``noise``, or shapes do not fit.
    """
    if latents.ndim != 4:
        raise InputError(f"latents={tuple(latents.shape)} is not allowed: [B, C, H, W]")
    t = time_steps(settings, denoiser).tolist()
    gammas = [settings.gamma(level) for level in t[:-1]]
    if noise is None and any(gammas):
        raise InputError(f"sampler.s_churn={settings.s_churn} adds noise: pass noise=, for example seeding.image_noise")

    def slope(x: torch.Tensor, level: float) -> torch.Tensor:
        sigma = torch.full((len(x),), level, dtype=torch.float64, device=x.device)
        denoised: torch.Tensor = denoiser(x, sigma, class_labels).to(torch.float64)
        d: torch.Tensor = (x - denoised) / level
        return d

    x: torch.Tensor = latents.to(torch.float64) * t[0]
    for i, gamma in enumerate(gammas):
        start, end = t[i], t[i + 1]
        if gamma > 0 and noise is not None:
            raised = start * (1 + gamma)
            x = x + math.sqrt(raised**2 - start**2) * settings.s_noise * noise(i).to(x)
            start = raised
        d = slope(x, start)
        step = x + (end - start) * d
        if settings.solver == "heun" and end > 0:
            step = x + (end - start) * 0.5 * (d + slope(step, end))
        x = step
    return x
