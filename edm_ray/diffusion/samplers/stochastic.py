"""Euler and Heun with churn for any schedule and scaling, and restarts: Algorithms 1 to 3 of Karras et al. 2022.

Restarts: Xu et al., "Restart Sampling for Improving Generative Processes", NeurIPS 2023.
"""

from __future__ import annotations

import itertools

import torch

from edm_ray.diffusion.samplers.common import Denoiser, NoiseSource, ode_step
from edm_ray.diffusion.samplers.plan import plan_of
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import path_of


def sample_stochastic(
    denoiser: Denoiser,
    latents: torch.Tensor,
    settings: SamplerSettings,
    class_labels: torch.Tensor | None,
    noise: NoiseSource,
) -> torch.Tensor:
    """Latents -> images, float64 [B, C, H, W]. Churn at step i uses noise(i), restarts noise(i, draw=1, 2, ...).

    Steps with gamma = 0 ask for no noise and add none.
    """
    path, plan = path_of(settings, denoiser), plan_of(settings, denoiser)
    t = [*(path.sigma_inv(level) for level in plan.levels), 0.0]
    t_raised = [path.sigma_inv(level) for level in plan.raised]
    restarts: dict[int, list[tuple[list[float], int]]] = {}
    for each in plan.restarts:
        times = [*(path.sigma_inv(level) for level in each.levels), t[each.index]]
        restarts.setdefault(each.index, []).append((times, each.times))
    alpha = settings.alpha if settings.solver == "heun" else None

    def lift(x: torch.Tensor, low: float, high: float, n: torch.Tensor) -> torch.Tensor:
        """Add noise to go back from time low to time high."""
        variance = max(path.sigma(high) ** 2 - path.sigma(low) ** 2, 0.0)
        lifted: torch.Tensor = x * (path.s(high) / path.s(low)) + n.to(x) * (
            variance**0.5 * path.s(high) * settings.s_noise
        )
        return lifted

    x = latents.to(torch.float64) * (path.sigma(t[0]) * path.s(t[0]))
    for i in range(settings.num_steps):
        draw = 1
        for times, count in restarts.get(i, []):
            for _ in range(count):
                x = lift(x, t[i], times[0], noise(i, draw=draw))
                draw += 1
                for start, end in itertools.pairwise(times):
                    x = ode_step(denoiser, x, start, end, path, class_labels, alpha)
        start = t[i]
        if plan.raised[i] > plan.levels[i]:
            start = t_raised[i]
            x = lift(x, t[i], start, noise(i))
        x = ode_step(denoiser, x, start, t[i + 1], path, class_labels, alpha if i < settings.num_steps - 1 else None)
    return x
