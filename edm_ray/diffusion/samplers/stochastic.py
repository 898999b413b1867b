"""Euler and Heun with churn for any schedule and scaling, and restarts: Algorithms 1 to 3 of Karras et al. 2022.

Restarts: Xu et al., "Restart Sampling for Improving Generative Processes", NeurIPS 2023.
"""

from __future__ import annotations

import itertools

import torch

from edm_ray.diffusion.samplers.common import Denoiser, NoiseSource, ode_step
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import edm_levels, path_of, rounded, time_steps


def restart_plan(settings: SamplerSettings, levels: list[float]) -> dict[int, list[tuple[float, int, int]]]:
    """Index of a time step -> (high, steps, times) of the restarts that happen on reaching it (never the first)."""
    plan: dict[int, list[tuple[float, int, int]]] = {}
    for low, high, steps, times in settings.restarts:
        index = min(range(1, len(levels)), key=lambda i: abs(levels[i] - low))
        plan.setdefault(index, []).append((high, steps, times))
    return plan


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
    path = path_of(settings, denoiser)
    t = time_steps(settings, denoiser).tolist()
    levels = [path.sigma(time) for time in t[:-1]]
    gammas = [settings.gamma(level) for level in levels]
    raised = [
        rounded([level * (1 + gamma)], denoiser)[0] if gamma > 0 else level
        for level, gamma in zip(levels, gammas, strict=True)
    ]
    restarts = restart_plan(settings, levels)
    alpha = settings.alpha if settings.solver == "heun" else None

    def lift(x: torch.Tensor, low: float, high: float, t_low: float, t_high: float, n: torch.Tensor) -> torch.Tensor:
        """Add noise to go from one noise level up to another."""
        spread = max(high**2 - low**2, 0.0) ** 0.5 * path.s(t_high) * settings.s_noise
        lifted: torch.Tensor = x * (path.s(t_high) / path.s(t_low)) + n.to(x) * spread
        return lifted

    x = latents.to(torch.float64) * (levels[0] * path.s(t[0]))
    for i in range(settings.num_steps):
        draw = 1
        for high, steps, times in restarts.get(i, []):
            inner = [*rounded(edm_levels(levels[i], max(high, levels[i]), steps + 1, settings.rho), denoiser)[:-1]]
            inner_t = [*(path.sigma_inv(level) for level in inner), t[i]]
            for _ in range(times):
                x = lift(x, levels[i], inner[0], t[i], inner_t[0], noise(i, draw=draw))
                draw += 1
                for start, end in itertools.pairwise(inner_t):
                    x = ode_step(denoiser, x, start, end, path, class_labels, alpha)
        start = t[i]
        if raised[i] > levels[i]:
            start = path.sigma_inv(raised[i])
            x = lift(x, levels[i], path.sigma(start), t[i], start, noise(i))
        x = ode_step(denoiser, x, start, t[i + 1], path, class_labels, alpha if i < settings.num_steps - 1 else None)
    return x
