"""Local truncation error of a sampler's steps by noise level (figure 13), so that rho can be chosen for a data set.

Each step of a sampler starts on the trajectory of the ODE and is compared with where the exact flow goes from there.
Of a sampler of the SDE the mean step is taken, noise left out, and compared with the flow of the SDE's drift; of a
multistep sampler the history lies on that flow too; of predictor-corrector, its predictor. Churn: the step begins at
the raised noise level. All in x / s.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.samplers import Evaluation, Sampler
from edm_ray.diffusion.samplers.levels import edm_levels
from edm_ray.errors import InputError


def flow(D: AtLevel, x: torch.Tensor, start: float, end: float, rate: float, substeps: int) -> torch.Tensor:
    """dx/dsigma = rate (x - D) / sigma from noise level start to end, down or up: rate 1 is the ODE, 2 the SDE's drift.

    By ``substeps`` steps of the classical Runge-Kutta method.
    """
    if start == end:
        return x
    levels = edm_levels(min(start, end), max(start, end), substeps + 1, 7.0)
    levels = [start, *(levels if end < start else levels[::-1])[1:-1], end]

    def slope(x: torch.Tensor, level: float) -> torch.Tensor:
        return (x - D(x, level)) * (rate / level)

    for a, b in itertools.pairwise(levels):
        h, middle = b - a, (a + b) / 2
        first = slope(x, a)
        second = slope(x + h / 2 * first, middle)
        third = slope(x + h / 2 * second, middle)
        x = x + h / 6 * (first + 2 * (second + third) + slope(x + h * third, b))
    return x


def truncation_errors(
    denoiser: Any,
    latents: torch.Tensor,
    sampler: Sampler,
    substeps: int = 8,
    class_labels: torch.Tensor | None = None,
    guide: Any = None,
) -> list[tuple[float, float]]:
    """(sigma at the start of a step, root mean square error of that one step), for all steps but the last, to 0.

    The exact flow is a fourth-order method with ``substeps`` steps to one of the sampler's, 4 evaluations each. Every
    solver but rk45, which measures its own error.
    """
    if substeps < 2:
        raise InputError(f"substeps={substeps} is not allowed: at least 2")
    D = AtLevel(sampler.guided(denoiser, class_labels, guide), class_labels)
    steps, at = sampler.mean_steps(D), sampler.noise_levels(D)[0]
    x = latents.to(torch.float64) * at
    errors = []
    for start, end, before in steps:
        rate = sampler.drift_rate(start)
        x = flow(D, x, at, start, 1.0, substeps)
        exact = flow(D, x, start, end, rate, substeps)
        earlier = [(level, flow(D, x, start, level, rate, substeps)) for level in before]
        history = [Evaluation(level, there, D(there, level)) for level, there in earlier]
        difference = sampler.mean_step(D, x, start, end, history) - exact
        errors.append((start, float(difference.square().mean().sqrt())))
        x, at = (exact, end) if rate == 1 else (x, start)
    return errors
