"""Inversion: from an image to its latent by integrating the ODE upward (Algorithm 1 with the time steps reversed)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.samplers import Euler, Sampler
from edm_ray.errors import InputError


def _integrate(D: AtLevel, x: torch.Tensor, sampler: Euler, upward: bool) -> torch.Tensor:
    """Without noise between sigma_{N-1} and sigma_0, float64; both ends are in units of x / s."""
    path = sampler.path(D)
    times = [path.sigma_inv(level) for level in sampler.noise_levels(D)]
    times = times[::-1] if upward else times
    x = x.to(torch.float64) * path.s(times[0])
    for start, end in itertools.pairwise(times):
        x = sampler.step(D, x, start, end, path)
    return x / path.s(times[-1])


def _prepare(
    denoiser: Any, sampler: Sampler, class_labels: torch.Tensor | None, guide: Any
) -> tuple[AtLevel, Euler, float]:
    """The denoiser with its labels, the sampler checked, and the highest noise level as the path gives it back."""
    if not isinstance(sampler, Euler):
        raise InputError(f"sampler.solver={sampler.solver!r} is not allowed to invert: euler or heun")
    D = AtLevel(sampler.guided(denoiser, class_labels, guide), class_labels)
    path = sampler.path(D)
    return D, sampler, path.sigma(path.sigma_inv(sampler.noise_levels(D)[0]))


def invert(
    denoiser: Any,
    images: torch.Tensor,
    sampler: Sampler,
    class_labels: torch.Tensor | None = None,
    guide: Any = None,
) -> torch.Tensor:
    """Images [B, C, H, W] -> latents of unit scale, float64. rho = 3 suits Heun (appendix D.1).

    Guidance acts, churn does not. An image is taken for the state at sigma_min, the lowest level, where the ODE starts.
    """
    D, solver, top = _prepare(denoiser, sampler, class_labels, guide)
    return _integrate(D, images, solver, upward=True) / top


def reconstruct(
    denoiser: Any,
    latents: torch.Tensor,
    sampler: Sampler,
    class_labels: torch.Tensor | None = None,
    guide: Any = None,
) -> torch.Tensor:
    """The way back: latents -> images at sigma_min, float64, without the last step to noise level 0."""
    D, solver, top = _prepare(denoiser, sampler, class_labels, guide)
    return _integrate(D, latents.to(torch.float64) * top, solver, upward=False)


def round_trip_errors(
    denoiser: Any,
    images: torch.Tensor,
    sampler: Sampler,
    steps: Sequence[int],
    class_labels: torch.Tensor | None = None,
) -> dict[int, float]:
    """Root mean square of reconstruct(invert(images)) - images for each number of steps."""
    errors = {}
    for count in steps:
        chosen = sampler.replace(num_steps=count)
        back = reconstruct(denoiser, invert(denoiser, images, chosen, class_labels), chosen, class_labels)
        errors[count] = float((back - images).square().mean().sqrt())
    return errors
