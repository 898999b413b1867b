"""Exponential moving average of the parameters, by half-life in images (Karras et al. 2022, appendix F.2)."""

from __future__ import annotations

import torch

from edm_ray.config.schema import EmaConfig


def ema_beta(config: EmaConfig, images_seen: int, batch_size: int) -> float:
    """Share of the old average kept at a step; ``images_seen`` is counted before the step, so the first share is 0."""
    halflife = config.halflife_kimg * 1000.0
    if config.rampup_ratio > 0:
        halflife = min(halflife, images_seen * config.rampup_ratio)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


@torch.no_grad()
def update_ema(average: torch.nn.Module, network: torch.nn.Module, beta: float) -> None:
    """average <- beta * average + (1 - beta) * network, parameters only."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - beta)
