"""What the solvers share: one call of the denoiser, the slope of the ODE, the noise source."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edm_ray.diffusion.noise import Path
from edm_ray.errors import InputError

Denoiser = Callable[..., torch.Tensor]
NoiseSource = Callable[..., torch.Tensor]


def denoise(denoiser: Denoiser, x: torch.Tensor, level: float, class_labels: torch.Tensor | None) -> torch.Tensor:
    """D(x; level) in float64: x [B, C, H, W] without scaling, level a host float.

    A denoiser with ``at_level(x, level, class_labels)`` gets the host float, so that it can decide by it without
    waiting for the device (guidance intervals).
    """
    at_level = getattr(denoiser, "at_level", None)
    if at_level is not None:
        result: torch.Tensor = at_level(x, level, class_labels)
    else:
        sigma = torch.full((len(x),), level, dtype=torch.float64, device=x.device)
        result = denoiser(x, sigma, class_labels)
    if result.shape != x.shape:
        raise InputError(
            f"the denoiser gave {tuple(result.shape)} for images of {tuple(x.shape)}: the same is expected"
        )
    return result.to(torch.float64)


def slope(denoiser: Denoiser, x: torch.Tensor, t: float, path: Path, class_labels: torch.Tensor | None) -> torch.Tensor:
    """dx/dt = (sigma'/sigma + s'/s) x - (sigma' s / sigma) D(x / s; sigma) for t > 0 (section 2, Algorithm 1)."""
    sigma, s, rate = path.sigma(t), path.s(t), path.sigma_deriv(t)
    denoised = denoise(denoiser, x / s, sigma, class_labels)
    return (rate / sigma + path.s_deriv(t) / s) * x - (rate * s / sigma) * denoised


def ode_step(
    denoiser: Denoiser,
    x: torch.Tensor,
    start: float,
    end: float,
    path: Path,
    class_labels: torch.Tensor | None,
    alpha: float | None = 1.0,
) -> torch.Tensor:
    """One step of the ODE from time start to end, in either direction; alpha None is Euler (appendix D.2).

    A step to noise level 0 is an Euler step. Where alpha > 1 would look below noise level 0, alpha = 1 is used.
    """
    h = end - start
    d = slope(denoiser, x, start, path, class_labels)
    if alpha is None or path.sigma(end) == 0:
        return x + h * d
    if start + alpha * h <= 0 or path.sigma(start + alpha * h) == 0:
        alpha = 1.0
    # start + (end - start) may miss end by a bit, which would decide at the bounds of a guidance interval.
    ahead_t = end if alpha == 1 else start + alpha * h
    ahead = slope(denoiser, x + alpha * h * d, ahead_t, path, class_labels)
    return x + h * ((1 - 0.5 / alpha) * d + 0.5 / alpha * ahead)
