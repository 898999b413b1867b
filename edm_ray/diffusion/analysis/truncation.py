"""Local truncation error of a sampler's steps by noise level (figure 13), so that rho can be chosen for a data set.

Each step of a sampler starts on the trajectory of the ODE and is compared with where the exact flow goes from there.
Of a sampler of the SDE the mean step is taken, noise left out, and compared with the flow of the SDE's drift; of a
multistep sampler the history lies on that flow too; of predictor-corrector, its predictor. Churn: the step begins at
the raised noise level. All in x / s.
"""

from __future__ import annotations

import itertools
import math

import torch

from edm_ray.diffusion.guidance import guided_by_settings
from edm_ray.diffusion.samplers.canonical import ALWAYS_NOISY
from edm_ray.diffusion.samplers.common import Denoiser, denoise, ode_step
from edm_ray.diffusion.samplers.dpmpp_2m import distinct, step_2m
from edm_ray.diffusion.samplers.dpmpp_3m_sde import multistep
from edm_ray.diffusion.samplers.euler_maruyama import drift_step
from edm_ray.diffusion.samplers.plan import plan_of
from edm_ray.diffusion.samplers.predictor_corrector import predict
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import edm_levels, noise_levels, path_of
from edm_ray.errors import InputError


class _Measured:
    """One sampler on one denoiser, and the exact flow that it follows."""

    def __init__(
        self, denoiser: Denoiser, settings: SamplerSettings, substeps: int, class_labels: torch.Tensor | None
    ) -> None:
        self.denoiser, self.settings, self.substeps, self.labels = denoiser, settings, substeps, class_labels
        self.path = path_of(settings, denoiser)
        self.rate = 2.0 if settings.solver in ALWAYS_NOISY else 1.0
        """dx/dsigma = rate (x - D) / sigma: 1 for the ODE, 2 for the drift of the SDE."""

    def steps(self) -> list[tuple[float, float, list[float]]]:
        """(start, end, levels before the start, nearest first) of every step but the last, which goes to 0."""
        if self.settings.solver not in ("heun", "euler"):
            levels = distinct(noise_levels(self.settings, self.denoiser))
            return [(a, b, levels[max(i - 2, 0) : i][::-1]) for i, (a, b) in enumerate(itertools.pairwise(levels))]
        plan = plan_of(self.settings, self.denoiser)
        steps: list[tuple[float, float, list[float]]] = []
        for i, (start, end) in enumerate(zip(plan.raised, plan.levels[1:], strict=False)):
            for restart in plan.restarts:
                if restart.index == i:
                    steps += [(a, b, []) for a, b in itertools.pairwise([*restart.levels, plan.levels[i]])]
            steps.append((start, end, []))
        return [step for step in steps if step[1] < step[0]]

    def flow(self, x: torch.Tensor, start: float, end: float, rate: float) -> torch.Tensor:
        """From noise level start to end, down or up, by ``substeps`` steps of the classical Runge-Kutta method."""
        if start == end:
            return x
        levels = edm_levels(min(start, end), max(start, end), self.substeps + 1, 7.0)
        levels = [start, *(levels if end < start else levels[::-1])[1:-1], end]

        def slope(x: torch.Tensor, level: float) -> torch.Tensor:
            return (x - self.denoised(x, level)) * (rate / level)

        for a, b in itertools.pairwise(levels):
            h, middle = b - a, (a + b) / 2
            first = slope(x, a)
            second = slope(x + h / 2 * first, middle)
            third = slope(x + h / 2 * second, middle)
            x = x + h / 6 * (first + 2 * (second + third) + slope(x + h * third, b))
        return x

    def denoised(self, x: torch.Tensor, level: float) -> torch.Tensor:
        return denoise(self.denoiser, x, level, self.labels)

    def step(self, x: torch.Tensor, start: float, end: float, before: list[float]) -> torch.Tensor:
        """The sampler's own step, without noise; x without scaling."""
        solver, path = self.settings.solver, self.path
        if solver in ("heun", "euler", "euler_maruyama"):
            a, b = path.sigma_inv(start), path.sigma_inv(end)
            if solver == "euler_maruyama":
                return drift_step(self.denoiser, x * path.s(a), a, b, path, self.labels) / path.s(b)
            alpha = self.settings.alpha if solver == "heun" else None
            return ode_step(self.denoiser, x * path.s(a), a, b, path, self.labels, alpha) / path.s(b)
        now = self.denoised(x, start)
        if solver == "predictor_corrector":
            return predict(x, now, 0.0, start, end, self.settings.scaling == "vp")
        history = [self.denoised(self.flow(x, start, level, self.rate), level) for level in before]
        if solver == "dpmpp_2m":
            return step_2m(x, start, end, now, (history[0], before[0]) if before else None)
        widths = [math.log(a / b) for b, a in itertools.pairwise([start, *before])]
        return multistep(x, [now, *history], widths, math.log(start / end))


def truncation_errors(
    denoiser: Denoiser,
    latents: torch.Tensor,
    settings: SamplerSettings,
    substeps: int = 8,
    class_labels: torch.Tensor | None = None,
) -> list[tuple[float, float]]:
    """(sigma at the start of a step, root mean square error of that one step), for all steps but the last, to 0.

    The exact flow is a fourth-order method with ``substeps`` steps to one of the sampler's, 4 evaluations each. Every
    solver but rk45, which measures its own error.
    """
    if settings.solver == "rk45":
        raise InputError("sampler.solver='rk45' is not allowed here: its steps adapt to sampler.tolerance")
    if substeps < 2:
        raise InputError(f"substeps={substeps} is not allowed: at least 2")
    denoiser = guided_by_settings(denoiser, settings, class_labels)
    measured = _Measured(denoiser, settings, substeps, class_labels)
    at = noise_levels(settings, denoiser)[0]
    x = latents.to(torch.float64) * at
    errors = []
    for start, end, before in measured.steps():
        x = measured.flow(x, at, start, 1.0)
        exact = measured.flow(x, start, end, measured.rate)
        difference = measured.step(x, start, end, before) - exact
        errors.append((start, float(difference.square().mean().sqrt())))
        x, at = (exact, end) if measured.rate == 1 else (x, start)
    return errors
