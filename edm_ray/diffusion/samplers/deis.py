"""DEIS, the t-AB form: Adams-Bashforth for steps of any width (Zhang and Chen, DEIS, ICLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.samplers.adams import plain_moments, weights
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.multistep import Multistep


@dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    """One evaluation a step: the polynomial through the last values of dx/dsigma = (x - D) / sigma, integrated exactly.

    Convention: s = 1 and polynomials in sigma, which is EDM's t (the paper's rhoAB for VP models). Other codes take
    polynomials in the time of VP, or in ln sigma: other coefficients, other images. On equal steps it is iPNDM.
    """

    solver = "deis"
    orders_allowed: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)

    order: int = 3
    """1 (Euler) to 4."""

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        now, h = past[0], after - past[0].level
        nodes = [(each.level - now.level) / h for each in past]
        rates = weights(nodes, plain_moments(len(past)))
        return now.x + h * sum(rate * each.slope for rate, each in zip(rates, past, strict=True))
