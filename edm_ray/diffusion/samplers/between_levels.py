"""What solvers share that step from noise level to noise level, and have no use for a time with sigma(t) and s(t).

The analytic first step (AFS): Dockhorn, Vahdat, Kreis, "GENIE", NeurIPS 2022. At the highest noise level x is almost
all noise, so (x - D) / sigma there is taken as x / sqrt(1 + sigma^2), as if the data had mean 0 and variance 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.samplers.base import Sampler
from edm_ray.diffusion.samplers.values import require


@dataclass(frozen=True, kw_only=True)
class BetweenLevels(Sampler):
    """A solver of dx/dsigma = (x - D) / sigma, or of its SDE, in sigma or in ln sigma. Any discretization.

    The step from the last noise level to 0 is D itself.
    """

    follows_schedule: ClassVar[bool] = False
    follows_scaling: ClassVar[bool] = False
    ignores_columns: ClassVar[bool] = False
    """Whether a schedule or scaling that it does not read may be set (and drops out of the effective form)."""

    afs: bool = False
    """Analytic first step: the first evaluation is x / sqrt(1 + sigma^2) for (x - D) / sigma; one NFE less."""

    def first_step_free(self, D: AtLevel) -> AtLevel:
        """The denoiser as `afs` has it."""
        return AnalyticFirst(D) if self.afs else D

    @property
    def nfe(self) -> int:
        """Network evaluations an image; the guide is evaluated too where it guides."""
        return super().nfe - self.afs

    def _guided_levels(self) -> list[bool]:
        return super()._guided_levels()[self.afs :]

    def _acting_levels(self, denoiser: Any) -> list[float] | None:
        return self.noise_levels(denoiser)[self.afs :]

    def _take_plain_types(self) -> None:
        super()._take_plain_types()
        require(isinstance(self.afs, bool), "afs", self.afs, "true or false")

    def _check(self) -> None:
        super()._check()
        for name, only in (("schedule", "linear"), ("scaling", "none")):
            allowed = f"{only} with solver {self.solver}, which steps between noise levels and reads no {name}"
            require(self.ignores_columns or getattr(self, name) == only, name, getattr(self, name), allowed)


class AnalyticFirst(AtLevel):
    """A denoiser whose first call is answered in closed form, without an evaluation and without a guide."""

    def __init__(self, D: AtLevel) -> None:
        super().__init__(D.denoiser, D.class_labels)
        self.asked = False

    def __call__(self, x: torch.Tensor, level: float) -> torch.Tensor:
        if self.asked:
            return super().__call__(x, level)
        self.asked = True
        total = math.hypot(1.0, level)
        return x / (total * (total + level))  # x (1 - level / total), without cancellation
