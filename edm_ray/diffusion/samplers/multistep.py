"""DPM-Solver++ 2M and 3M SDE: multistep solvers between noise levels (Lu et al. 2022, "DPM-Solver++").

Written for x = y + sigma n, lambda = -ln sigma: the linear part of the equation is solved exactly, D is extrapolated
from the steps before. The last step, to noise level 0, is D itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.noise import Path
from edm_ray.diffusion.samplers.base import Noise, Sampler, distinct, require


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Sampler):
    """DPM-Solver++(2M), algorithm 2 of the paper: deterministic, second order, one evaluation a step."""

    solver = "dpmpp_2m"
    follows_schedule: ClassVar[bool] = False
    follows_scaling: ClassVar[bool] = False

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        levels = distinct(levels[:-1])
        history: list[tuple[float, torch.Tensor]] = []
        for level, after in itertools.pairwise(levels):
            denoised = D(x, level)
            x = self._step(x, level, after, denoised, history)
            history = [(level, denoised)]
        return D(x, levels[-1])

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[tuple[float, torch.Tensor]]
    ) -> torch.Tensor:
        return self._step(x, start, end, D(x, start), history)

    @staticmethod
    def _step(
        x: torch.Tensor, level: float, after: float, denoised: torch.Tensor, history: list[tuple[float, torch.Tensor]]
    ) -> torch.Tensor:
        target = denoised
        if history:
            higher, before = history[0]
            ratio = math.log(level / after) / math.log(higher / level)
            target = denoised + (denoised - before) * (0.5 * ratio)
        return x * (after / level) + target * (1 - after / level)


@dataclass(frozen=True, kw_only=True)
class DPMpp3MSDE(Sampler):
    """DPM-Solver++(3M) for the SDE: a third-order multistep exponential integrator.

    In lambda = -ln sigma, with a = 1 + eta, over a step of width h (x = y + sigma n):

        x(h) = exp(-a h) x(0) + integral_0^h a exp(-a (h - u)) D(u) du + sigma(h) sqrt(1 - exp(-2 eta h)) n

    and D(u) is the parabola through the last three values of D. eta = 1 is the reverse SDE.
    """

    solver = "dpmpp_3m_sde"
    follows_schedule: ClassVar[bool] = False
    follows_scaling: ClassVar[bool] = False
    is_sde: ClassVar[bool] = True

    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        """Step i uses noise(i)."""
        levels = distinct(levels[:-1])
        history: list[tuple[float, torch.Tensor]] = []
        for i, (level, after) in enumerate(itertools.pairwise(levels)):
            h, denoised = math.log(level / after), D(x, level)
            x = self._mean(x, level, after, denoised, history)
            x = x + noise(i).to(x) * (after * math.sqrt(-math.expm1(-2 * h)) * self.s_noise)
            history = [(level, denoised), *history[:1]]
        return D(x, levels[-1])

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[tuple[float, torch.Tensor]]
    ) -> torch.Tensor:
        return self._mean(x, start, end, D(x, start), history)

    @staticmethod
    def _mean(
        x: torch.Tensor, level: float, after: float, denoised: torch.Tensor, history: list[tuple[float, torch.Tensor]]
    ) -> torch.Tensor:
        widths = [math.log(higher / lower) for lower, higher in itertools.pairwise([level, *(at for at, _ in history)])]
        return exponential_step(x, [denoised, *(value for _, value in history)], widths, math.log(level / after))

    def _check(self) -> None:
        super()._check()
        require(0 <= self.s_noise < math.inf, "s_noise", self.s_noise, "0 or more, finite")


def exponential_step(
    x: torch.Tensor, values: list[torch.Tensor], widths: list[float], h: float, eta: float = 1.0
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
