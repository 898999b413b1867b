"""DPM-Solver++(3M) for the SDE: a third-order multistep exponential integrator (Lu et al. 2022, "DPM-Solver++")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.samplers.dpmpp_3m import third_order
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.stochastic import StochasticMultistep


@dataclass(frozen=True, kw_only=True)
class DPMpp3MSDE(StochasticMultistep):
    """One evaluation a step; D(u) is the parabola through the last three values of D, integrated exactly.

    Convention: the curvature has its exact weight, as in `DPMpp3M`.
    """

    solver = "dpmpp_3m_sde"
    ignores_columns: ClassVar[bool] = True
    most_order: ClassVar[int] = 3

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        return third_order(past, after, self.eta)
