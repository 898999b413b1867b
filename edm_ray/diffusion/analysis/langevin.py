"""Noise added and removed again and again at one noise level (figure 14): what churn alone does to an image."""

from __future__ import annotations

import math
from typing import Any

import torch

from edm_ray.diffusion.denoiser import AtLevel, as_denoiser
from edm_ray.diffusion.noise import Linear, Path
from edm_ray.diffusion.samplers.base import Noise
from edm_ray.diffusion.samplers.heun import ode_step
from edm_ray.errors import InputError


def langevin(
    denoiser: Any,
    x: torch.Tensor,
    sigma: float,
    steps: int,
    noise: Noise,
    gamma: float = math.sqrt(2.0) - 1.0,
    s_noise: float = 1.0,
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """``steps`` times: raise the noise level from sigma to (1 + gamma) sigma, come back by one Heun step.

    x [B, C, H, W] at noise level sigma -> the same, float64. Step i uses noise(i). s_noise > 1 makes up for a denoiser
    that removes too much. Raises InputError unless sigma > 0, gamma > 0, steps >= 0, s_noise >= 0, all finite.
    """
    for name, value, fits in (
        ("sigma", sigma, 0 < sigma < math.inf),
        ("gamma", gamma, 0 < gamma < math.inf),
        ("steps", steps, steps >= 0),
        ("s_noise", s_noise, 0 <= s_noise < math.inf),
    ):
        if not fits:
            allowed = "greater than 0, finite" if name in ("sigma", "gamma") else "0 or more, finite"
            raise InputError(f"langevin.{name}={value!r} is not allowed: {allowed}")
    D = AtLevel(as_denoiser(denoiser), class_labels)
    path, raised = Path(Linear()), sigma * (1 + gamma)
    spread = math.sqrt(raised**2 - sigma**2) * s_noise
    x = x.to(torch.float64)
    for i in range(steps):
        x = ode_step(D, x + noise(i).to(x) * spread, raised, sigma, path)
    return x
