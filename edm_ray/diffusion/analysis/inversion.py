"""Inversion: from an image to its latent by integrating the ODE upward (Algorithm 1 with the time steps reversed)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch

from edm_ray.diffusion.guidance import guided_by_settings
from edm_ray.diffusion.samplers.common import Denoiser, ode_step
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import path_of, time_steps
from edm_ray.errors import InputError


def _integrate(
    denoiser: Denoiser,
    x: torch.Tensor,
    settings: SamplerSettings,
    class_labels: torch.Tensor | None,
    upward: bool,
) -> torch.Tensor:
    """Without noise between sigma_{N-1} and sigma_0, float64; both ends are in units of x / s."""
    if settings.solver not in ("euler", "heun"):
        raise InputError(f"sampler.solver={settings.solver!r} is not allowed to invert: euler or heun")
    denoiser = guided_by_settings(denoiser, settings, class_labels)
    path = path_of(settings, denoiser)
    times = time_steps(settings, denoiser).tolist()[:-1]
    times = times[::-1] if upward else times
    alpha = settings.alpha if settings.solver == "heun" else None
    x = x.to(torch.float64) * path.s(times[0])
    for start, end in itertools.pairwise(times):
        x = ode_step(denoiser, x, start, end, path, class_labels, alpha)
    return x / path.s(times[-1])


def invert(
    denoiser: Denoiser, images: torch.Tensor, settings: SamplerSettings, class_labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Images [B, C, H, W] -> latents of unit scale, float64. rho = 3 suits Heun (appendix D.1).

    Guidance acts, churn does not. An image is taken for the state at sigma_min, the lowest level, where the ODE starts.
    """
    path = path_of(settings, denoiser)
    top = path.sigma(float(time_steps(settings, denoiser)[0]))
    return _integrate(denoiser, images, settings, class_labels, upward=True) / top


def reconstruct(
    denoiser: Denoiser, latents: torch.Tensor, settings: SamplerSettings, class_labels: torch.Tensor | None = None
) -> torch.Tensor:
    """The way back: latents -> images at sigma_min, float64, without the last step to noise level 0."""
    path = path_of(settings, denoiser)
    top = path.sigma(float(time_steps(settings, denoiser)[0]))
    return _integrate(denoiser, latents.to(torch.float64) * top, settings, class_labels, upward=False)


def round_trip_errors(
    denoiser: Denoiser,
    images: torch.Tensor,
    settings: SamplerSettings,
    steps: Sequence[int],
    class_labels: torch.Tensor | None = None,
) -> dict[int, float]:
    """Root mean square of reconstruct(invert(images)) - images for each number of steps."""
    errors = {}
    for count in steps:
        chosen = dataclasses.replace(settings, num_steps=count)
        back = reconstruct(denoiser, invert(denoiser, images, chosen, class_labels), chosen, class_labels)
        errors[count] = float((back - images).square().mean().sqrt())
    return errors
