"""iPNDM: Adams-Bashforth in sigma with constant coefficients (Liu et al. 2022, PNDM; Zhang and Chen 2023, iPNDM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.multistep import Multistep

COEFFICIENTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights of dx/dsigma now, before, before that: exact for steps of equal width."""


@dataclass(frozen=True, kw_only=True)
class IPNDM(Multistep):
    """One evaluation a step: dx/dsigma = (x - D) / sigma, extrapolated from up to four levels.

    The order rises from 1. Full order is kept into the last noise level; the step from there to 0 is D itself. The
    coefficients are those of equal steps, whatever the steps are; `DEIS` is the form for steps of any width.
    """

    solver = "ipndm"
    ignores_columns: ClassVar[bool] = True
    orders_allowed: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)

    order: int = 4
    """1 (Euler) to 4."""

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        now = past[0]
        slope = sum(c * each.slope for c, each in zip(COEFFICIENTS[len(past) - 1], past, strict=True))
        return now.x + (after - now.level) * slope
