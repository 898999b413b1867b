"""What multistep solvers of the reverse SDE share: how much noise a step adds (Lu et al. 2022, "DPM-Solver++").

In lambda = -ln sigma, with a = 1 + eta, over a step of width h (x = y + sigma n):

    x(h) = exp(-a h) x(0) + integral_0^h a exp(-a (h - u)) D(u) du + sigma(h) sqrt(1 - exp(-2 eta h)) n

eta = 1 is the reverse SDE; as eta goes to 0 it becomes the ODE. The noise is exact, D is extrapolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from edm_ray.diffusion.samplers.multistep import Multistep
from edm_ray.diffusion.samplers.values import require


@dataclass(frozen=True, kw_only=True)
class StochasticMultistep(Multistep):
    """Adds noise at every step but the last, to 0."""

    is_sde: ClassVar[bool] = True

    eta: float = 1.0
    """Amount of noise: 1 is the reverse SDE."""
    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""

    def spread(self, level: float, after: float) -> float:
        return after * math.sqrt(-math.expm1(-2 * self.eta * math.log(level / after))) * self.s_noise

    def drift_rate(self, level: float) -> float:
        return 1 + self.eta

    def _check(self) -> None:
        super()._check()
        ode = self.solver.removesuffix("_sde")
        require(0 < self.eta < math.inf, "eta", self.eta, f"greater than 0, finite; without noise it is {ode}")
        require(0 <= self.s_noise < math.inf, "s_noise", self.s_noise, "0 or more, finite")
