"""DPM-Solver++(3M) for the SDE: a third-order multistep exponential integrator (Lu et al. 2022).

In lambda = -ln sigma, with a = 1 + eta, over a step of width h (x = y + sigma n):

    x(h) = exp(-a h) x(0) + integral_0^h a exp(-a (h - u)) D(u) du + sigma(h) sqrt(1 - exp(-2 eta h)) n

and D(u) is the parabola through the last three values of D. eta = 0 is the ODE, eta = 1 the reverse SDE.
"""

from __future__ import annotations

import itertools
import math

import torch

from edm_ray.diffusion.samplers.common import Denoiser, NoiseSource, denoise
from edm_ray.diffusion.samplers.dpmpp_2m import distinct
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import noise_levels


def multistep(
    x: torch.Tensor, values: list[torch.Tensor], widths: list[float], h: float, eta: float = 1.0
) -> torch.Tensor:
    """The mean of one step of width h > 0. values: D now, before, before that; widths: of the steps between them."""
    ah = (1 + eta) * h
    mean = x * math.exp(-ah) - values[0] * math.expm1(-ah)
    if len(values) == 1:
        return mean
    # Weights of D' and D'' at the start of the step: the integrals of u and of u^2 / 2.
    first = h * (1 + math.expm1(-ah) / ah)
    second = h * (h / 2 - first / ah)
    d01 = (values[0] - values[1]) / widths[0]
    if len(values) == 2:
        return mean + first * d01
    d12 = (values[1] - values[2]) / widths[1]
    curvature = (d01 - d12) / (widths[0] + widths[1])
    return mean + first * (d01 + curvature * widths[0]) + second * 2 * curvature


def sample_dpmpp_3m_sde(
    denoiser: Denoiser,
    latents: torch.Tensor,
    settings: SamplerSettings,
    class_labels: torch.Tensor | None,
    noise: NoiseSource,
    eta: float = 1.0,
) -> torch.Tensor:
    """Latents -> images, float64 [B, C, H, W]; step i uses noise(i); the last step is D itself."""
    levels = distinct(noise_levels(settings, denoiser))
    x = latents.to(torch.float64) * levels[0]
    values: list[torch.Tensor] = []
    widths: list[float] = []
    for i, (level, following) in enumerate(itertools.pairwise(levels)):
        h = math.log(level / following)
        values = [denoise(denoiser, x, level, class_labels), *values[:2]]
        x = multistep(x, values, widths, h, eta)
        if eta > 0:
            x = x + noise(i).to(x) * (following * math.sqrt(-math.expm1(-2 * eta * h)) * settings.s_noise)
        widths = [h, *widths[:1]]
    return denoise(denoiser, x, levels[-1], class_labels)
