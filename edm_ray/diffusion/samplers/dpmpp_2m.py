"""DPM-Solver++(2M), deterministic (Lu et al. 2022, "DPM-Solver++")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.multistep import Multistep


def extrapolated(past: list[Evaluation], after: float) -> torch.Tensor:
    """D in the middle of the step from past[0] to ``after``, in lambda = -ln sigma, by the last two values."""
    now = past[0]
    if len(past) == 1:
        return now.denoised
    ratio = math.log(now.level / after) / math.log(past[1].level / now.level)
    return now.denoised + (now.denoised - past[1].denoised) * (0.5 * ratio)


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Multistep):
    """Algorithm 2 of the paper: second order, one evaluation a step.

    In lambda = -ln sigma the linear part is solved exactly and D is extrapolated to the middle of the step: the
    difference has the weight (1 - exp(-h)) / 2 ("midpoint" in other codes), not its exact integral ("heun" there).
    """

    solver = "dpmpp_2m"
    ignores_columns: ClassVar[bool] = True
    most_order: ClassVar[int] = 2

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        kept = after / past[0].level
        return past[0].x * kept + extrapolated(past, after) * (1 - kept)
