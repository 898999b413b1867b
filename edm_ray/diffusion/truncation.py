"""Local truncation error of a sampler's step by noise level (figure 13), so that rho can be chosen for a data set."""

from __future__ import annotations

import itertools

import torch

from edm_ray.diffusion.samplers.common import Denoiser, ode_step
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import edm_levels, path_of, time_steps
from edm_ray.errors import InputError


def truncation_errors(
    denoiser: Denoiser,
    latents: torch.Tensor,
    settings: SamplerSettings,
    substeps: int = 32,
    class_labels: torch.Tensor | None = None,
) -> list[tuple[float, float]]:
    """(sigma at the start of a step, root mean square error of that one step), for all steps but the last, to 0.

    Each step starts on the reference trajectory, which Heun follows with ``substeps`` steps to one; the error is
    measured in x / s at the end of the step. Euler and Heun only, without churn.
    """
    if settings.solver not in ("euler", "heun"):
        raise InputError(f"sampler.solver={settings.solver!r} is not allowed here: euler or heun")
    if substeps < 2:
        raise InputError(f"substeps={substeps} is not allowed: at least 2")
    path = path_of(settings, denoiser)
    times = time_steps(settings, denoiser).tolist()[:-1]
    alpha = settings.alpha if settings.solver == "heun" else None
    x = latents.to(torch.float64) * (path.sigma(times[0]) * path.s(times[0]))
    errors = []
    for start, end in itertools.pairwise(times):
        if end == start:
            continue
        stepped = ode_step(denoiser, x, start, end, path, class_labels, alpha)
        levels = edm_levels(path.sigma(end), path.sigma(start), substeps + 1, 7.0)
        fine = [start, *(path.sigma_inv(level) for level in levels[1:-1]), end]
        for a, b in itertools.pairwise(fine):
            x = ode_step(denoiser, x, a, b, path, class_labels)
        errors.append((path.sigma(start), float(((stepped - x) / path.s(end)).square().mean().sqrt())))
    return errors
