"""SA-Solver: stochastic Adams methods with a predictor and a corrector (Xue et al., NeurIPS 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from edm_ray.diffusion.samplers.adams import exponential_moments, weights
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.multistep import Multistep
from edm_ray.diffusion.samplers.values import require


@dataclass(frozen=True, kw_only=True)
class SASolver(Multistep):
    """One evaluation a step of the SDE with eta = tau^2 (`stochastic`) where tau acts, of the ODE elsewhere.

    D is the polynomial through its last ``order`` values, in lambda = -ln sigma, integrated exactly; the corrector
    adds the value at the end of the step, which the next step needs anyway, and keeps the step's noise. The last noise
    level, whose D is the image, is not corrected.

    Conventions: tau is constant over a step and decided at its start; coefficients of order 2 are the exact integrals
    too (the authors' code has others as a choice).
    """

    solver = "sa_solver"
    is_sde: ClassVar[bool] = True
    orders_allowed: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    corrects: ClassVar[bool] = True

    order: int = 3
    """Steps of the predictor, 1 to 4; the corrector's values are one more."""
    tau: float = 1.0
    """Amount of noise: 1 is the reverse SDE, 0 the ODE."""
    tau_min: float = 0.0
    tau_max: float = math.inf
    """tau acts at steps that start at tau_min <= sigma <= tau_max only."""
    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        now = past[0]
        h = math.log(now.level / after)
        z = self.drift_rate(now.level) * h
        nodes, values = [math.log(now.level / each.level) / h for each in past], [each.denoised for each in past]
        if ahead is not None:
            nodes, values = [*nodes, 1.0], [*values, ahead]
        shares = weights(nodes, exponential_moments(z, len(nodes)))
        return now.x * math.exp(-z) + sum(share * value for share, value in zip(shares, values, strict=True))

    def spread(self, level: float, after: float) -> float:
        eta = self._tau_at(level) ** 2
        return after * math.sqrt(-math.expm1(-2 * eta * math.log(level / after))) * self.s_noise

    def drift_rate(self, level: float) -> float:
        return 1 + self._tau_at(level) ** 2

    def _tau_at(self, level: float) -> float:
        return self.tau if self.tau_min <= level <= self.tau_max else 0.0

    def needs_noise(self, denoiser: Any = None) -> bool:
        return bool(self._noisy(denoiser))

    def _noisy(self, denoiser: Any) -> list[float]:
        """The noise levels at which steps start that add noise."""
        return [level for level in self.noise_levels(denoiser)[:-1] if self._tau_at(level) > 0]

    def _acting(self, denoiser: Any) -> Self:
        """The window from the lowest to the highest noise level at which noise is added; tau 0 where none is."""
        form = super()._acting(denoiser)
        if noisy := form._noisy(denoiser):
            return form.replace(tau_min=min(noisy), tau_max=max(noisy))
        return form.replace(tau=0.0)

    def _unread(self) -> set[str]:
        return super()._unread() | ({"tau_min", "tau_max", "s_noise"} if self.tau == 0 else set())

    def _check(self) -> None:
        super()._check()
        require(0 <= self.tau < math.inf, "tau", self.tau, "0 or more, finite")
        require(0 <= self.tau_min < math.inf, "tau_min", self.tau_min, "0 or more, finite")
        require(self.tau_min <= self.tau_max, "tau_min", self.tau_min, f"at most tau_max={self.tau_max}")
        require(0 <= self.s_noise < math.inf, "s_noise", self.s_noise, "0 or more, finite")
