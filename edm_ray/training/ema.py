"""Averages of the parameters over training: by half-life in images (Karras et al. 2022, appendix F.2), and by a power
of time (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3).
"""

from __future__ import annotations

import numpy as np
import torch

from edm_ray.config.training import EmaConfig


def ema_beta(config: EmaConfig, images_seen: int, batch_size: int) -> float:
    """Share of the old average kept at a step; ``images_seen`` is counted before the step, so the first share is 0."""
    halflife = config.halflife_kimg * 1000.0
    if config.rampup_ratio > 0:
        halflife = min(halflife, images_seen * config.rampup_ratio)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


def power_beta(gamma: float, step: int) -> float:
    """Share of the old average kept at step 1, 2, ... of a power-function average: (1 - 1 / step)^(gamma + 1)."""
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


def gamma_of(sigma_rel: float) -> float:
    """Exponent of the profile t^gamma whose standard deviation is sigma_rel times the training time.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): the largest root of a cubic.
    """
    t = sigma_rel**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


@torch.no_grad()
def update_ema(average: torch.nn.Module, network: torch.nn.Module, beta: float) -> None:
    """average <- beta * average + (1 - beta) * network, parameters only."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - beta)
