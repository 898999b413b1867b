"""RK45 (Dormand and Prince) on the probability flow ODE, with scipy as the solver, as Song et al. 2021 used it."""

from __future__ import annotations

import numpy as np
import scipy.integrate
import torch

from edm_ray.diffusion.samplers.common import Denoiser, ode_step, slope
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import path_of, rounded
from edm_ray.errors import InputError


def sample_rk45(
    denoiser: Denoiser, latents: torch.Tensor, settings: SamplerSettings, class_labels: torch.Tensor | None
) -> torch.Tensor:
    """Latents -> images, float64 [B, C, H, W].

    Each image is solved by itself, so that its step sizes do not depend on the batch. From sigma_max to sigma_min the
    steps adapt to ``settings.tolerance``, so neither the discretization nor num_steps acts; the last step, to 0, is an
    Euler step. A grid of noise levels is not respected between the ends.
    """
    path = path_of(settings, denoiser)
    low, high = settings.sigma_range(denoiser)
    first, last = (path.sigma_inv(level) for level in rounded([high, low], denoiser))
    images = []
    for k in range(len(latents)):
        x = latents[k : k + 1].to(torch.float64) * (path.sigma(first) * path.s(first))
        label = None if class_labels is None else class_labels[k : k + 1]

        def rate(
            time: float,
            state: np.ndarray,
            like: torch.Tensor = x,
            label: torch.Tensor | None = label,
        ) -> np.ndarray:
            value = torch.from_numpy(state).to(like).reshape(like.shape)
            result: np.ndarray = slope(denoiser, value, float(time), path, label).flatten().cpu().numpy()
            return result

        solution = scipy.integrate.solve_ivp(
            rate,
            (first, last),
            x.flatten().cpu().numpy(),
            method="RK45",
            rtol=settings.tolerance,
            atol=settings.tolerance,
            t_eval=[last],
        )
        if not solution.success:
            raise InputError(f"sampler.tolerance={settings.tolerance}: rk45 stopped: {solution.message}")
        x = torch.from_numpy(solution.y[:, -1].copy()).to(x).reshape(x.shape)
        images.append(ode_step(denoiser, x, last, 0.0, path, label, None))
    return torch.cat(images)
