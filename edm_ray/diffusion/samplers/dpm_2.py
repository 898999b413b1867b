"""DPM-Solver-2, singlestep (Lu et al., "DPM-Solver", NeurIPS 2022)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.noise import Path
from edm_ray.diffusion.samplers.base import Noise
from edm_ray.diffusion.samplers.between_levels import BetweenLevels
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.levels import distinct


@dataclass(frozen=True, kw_only=True)
class DPM2(BetweenLevels):
    """Two evaluations a step: Euler to the middle in ln sigma, sqrt(sigma_i sigma_{i+1}), and the whole step by the
    slope there. Algorithm 1 of the paper with r_1 = 1/2; with s = 1 it is written in dx/dsigma = (x - D) / sigma.

    The last step, to 0, is D itself: 2 N - 1 evaluations, as Heun. The middle is not rounded to a network's grid.
    """

    solver = "dpm_2"
    evaluations: ClassVar[int] = 2

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        levels, D = distinct(levels[:-1]), self.first_step_free(D)
        for start, end in itertools.pairwise(levels):
            x = self.mean_step(D, x, start, end, [])
        return D(x, levels[-1])

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[Evaluation]
    ) -> torch.Tensor:
        middle = math.sqrt(start * end)
        ahead = x + (x - D(x, start)) * ((middle - start) / start)
        return x + (ahead - D(ahead, middle)) * ((end - start) / middle)

    def mean_steps(self, denoiser: Any = None) -> list[tuple[float, float, list[float]]]:
        return [(start, end, []) for start, end, _ in super().mean_steps(denoiser)]

    @property
    def nfe(self) -> int:
        """The last step has one evaluation."""
        return super().nfe - 1

    def _nfe_of_guide(self) -> int:
        if self.guidance == 1:
            return 0
        called = self._acting_levels(None) or []
        return sum(self.guidance_min <= level <= self.guidance_max for level in called)

    def _acting_levels(self, denoiser: Any) -> list[float] | None:
        """The noise levels, and those in the middle of the steps."""
        levels = distinct(self.noise_levels(denoiser))
        middles = [math.sqrt(a * b) for a, b in itertools.pairwise(levels)]
        return [*levels[self.afs :], *middles]
