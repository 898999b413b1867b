"""DPM-Solver++(2M) for the SDE: a second-order multistep exponential integrator (Lu et al. 2022, "DPM-Solver++")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.samplers.dpmpp_2m import extrapolated
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.stochastic import StochasticMultistep


@dataclass(frozen=True, kw_only=True)
class DPMpp2MSDE(StochasticMultistep):
    """One evaluation a step, D as DPM-Solver++(2M) extrapolates it.

    The difference has the weight (1 - exp(-(1 + eta) h)) / 2, the paper's ("midpoint" in other codes), not its exact
    integral ("heun" there).
    """

    solver = "dpmpp_2m_sde"
    most_order: ClassVar[int] = 2

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        ah = (1 + self.eta) * math.log(past[0].level / after)
        return past[0].x * math.exp(-ah) - extrapolated(past, after) * math.expm1(-ah)
