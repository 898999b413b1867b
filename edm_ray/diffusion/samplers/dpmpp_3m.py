"""DPM-Solver++(3M), deterministic: a third-order multistep exponential integrator (Lu et al. 2022, "DPM-Solver++")."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.multistep import Multistep


@dataclass(frozen=True, kw_only=True)
class DPMpp3M(Multistep):
    """One evaluation a step: in lambda = -ln sigma, over a step of width h,

        x(h) = exp(-h) x(0) + integral_0^h exp(-(h - u)) D(u) du

    with D(u) the parabola through the last three values of D, integrated exactly; the second step's is a line.

    Convention: the curvature has its exact weight, D'' = 2 times the second divided difference. Several widely used
    codes lack the 2, and are of second order therefore; they also take the second step as DPM-Solver++(2M) does.
    """

    solver = "dpmpp_3m"
    most_order: ClassVar[int] = 3

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        return third_order(past, after, eta=0.0)


def third_order(past: list[Evaluation], after: float, eta: float) -> torch.Tensor:
    """The mean of the step from past[0] to noise level ``after``; eta: 0 is the ODE, 1 the SDE (`stochastic`)."""
    now, widths = past[0], [math.log(before.level / at.level) for at, before in itertools.pairwise(past)]
    return exponential_step(now.x, [each.denoised for each in past], widths, math.log(now.level / after), eta)


def exponential_step(
    x: torch.Tensor, values: list[torch.Tensor], widths: list[float], h: float, eta: float
) -> torch.Tensor:
    """The mean of one step of width h > 0. values: D now, before, before that; widths: of the steps between them."""
    ah = (1 + eta) * h
    mean = x * math.exp(-ah) - values[0] * math.expm1(-ah)
    if len(values) == 1:
        return mean
    # Weights of D' and D'' at the start of the step: the integrals of u and of u^2 / 2.
    first = h * (1 + math.expm1(-ah) / ah)
    second = h * (h / 2 - first / ah)
    d01 = (values[0] - values[1]) / widths[0]
    if len(values) == 2:
        return mean + first * d01
    d12 = (values[1] - values[2]) / widths[1]
    curvature = (d01 - d12) / (widths[0] + widths[1])
    return mean + first * (d01 + curvature * widths[0]) + second * 2 * curvature
