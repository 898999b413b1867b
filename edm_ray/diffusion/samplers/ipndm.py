"""iPNDM: Adams-Bashforth on the probability flow ODE in sigma, with constant coefficients.

Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022; Zhang and Chen, "Fast Sampling of
Diffusion Models with Exponential Integrator", ICLR 2023, which names this form.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.noise import Path
from edm_ray.diffusion.samplers.base import Noise, Sampler, distinct, require

COEFFICIENTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights of dx/dsigma now, before, before that: exact for steps of equal width."""


@dataclass(frozen=True, kw_only=True)
class IPNDM(Sampler):
    """One evaluation a step: dx/dsigma = (x - D) / sigma, extrapolated from up to four levels.

    The order rises from 1. Full order is kept into the last noise level; the step from there to 0 is D itself.
    """

    solver = "ipndm"
    follows_schedule = False
    follows_scaling = False

    order: int = 4
    """1 (Euler) to 4."""

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        levels, slopes = distinct(levels[:-1]), list[torch.Tensor]()
        for level, after in itertools.pairwise(levels):
            slopes = [(x - D(x, level)) / level, *slopes[: self.order - 1]]
            x = x + (after - level) * sum(c * d for c, d in zip(COEFFICIENTS[len(slopes) - 1], slopes, strict=True))
        return D(x, levels[-1])

    def _check(self) -> None:
        super()._check()
        require(self.order in (1, 2, 3, 4), "order", self.order, "1, 2, 3 or 4")
