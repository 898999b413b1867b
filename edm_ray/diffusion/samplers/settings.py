"""What a sampler does, in the paper's terms."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from edm_ray.errors import InputError

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
GAMMA_MAX = math.sqrt(2.0) - 1.0


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Settings of Algorithm 2 (and of Algorithm 1: s_churn = 0)."""

    num_steps: int = 18
    """Number of time steps N; at least 2."""
    sigma_min: float | None = None
    """None: 0.002, or the denoiser's own bound where that is higher."""
    sigma_max: float | None = None
    """None: 80, or the denoiser's own bound where that is lower."""
    rho: float = 7.0
    """Warp of the time steps: larger = shorter steps at low noise."""
    solver: str = "heun"
    """heun (second order) or euler."""
    s_churn: float = 0.0
    """Amount of noise added over the whole run; acts up to num_steps * (sqrt(2) - 1), above it nothing changes."""
    s_tmin: float = 0.0
    """Lowest noise level at which noise is added."""
    s_tmax: float = math.inf
    """Highest noise level at which noise is added."""
    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, allowed: str) -> None:
            if not condition:
                raise InputError(f"sampler.{name}={getattr(self, name)!r} is not allowed: {allowed}")

        require(isinstance(self.num_steps, int) and self.num_steps >= 2, "num_steps", "a whole number, at least 2")
        require(self.solver in ("heun", "euler"), "solver", "heun or euler")
        require(0 < self.rho < math.inf, "rho", "greater than 0, finite")
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, "greater than 0, finite")
        if self.sigma_min is not None and self.sigma_max is not None:
            require(self.sigma_min < self.sigma_max, "sigma_min", f"less than sigma_max={self.sigma_max}")
        require(0 <= self.s_churn < math.inf, "s_churn", "0 or more, finite")
        require(0 <= self.s_tmin < math.inf, "s_tmin", "0 or more, finite")
        require(self.s_tmin <= self.s_tmax, "s_tmin", f"at most s_tmax={self.s_tmax}")
        require(0 <= self.s_noise < math.inf, "s_noise", "0 or more, finite")

    @property
    def churn_cap(self) -> float:
        """S_churn above which nothing changes: gamma is capped at sqrt(2) - 1 a step (Algorithm 2)."""
        return self.num_steps * GAMMA_MAX

    @property
    def nfe(self) -> int:
        """Network evaluations an image: Heun's last step is an Euler step."""
        return 2 * self.num_steps - 1 if self.solver == "heun" else self.num_steps

    def sigma_range(self, denoiser: Any) -> tuple[float, float]:
        """(sigma_min, sigma_max) within what the denoiser knows. Raises InputError when nothing is left."""
        low = max(self.sigma_min or SIGMA_MIN, float(getattr(denoiser, "sigma_min", 0.0)))
        high = min(self.sigma_max or SIGMA_MAX, float(getattr(denoiser, "sigma_max", math.inf)))
        if not low < high:
            raise InputError(f"sampler.sigma_min={low} is not allowed: less than sigma_max={high}")
        return low, high

    def gamma(self, sigma: float) -> float:
        """Relative increase of the noise level at a step that starts at ``sigma`` (Algorithm 2, line 4)."""
        return min(self.s_churn / self.num_steps, GAMMA_MAX) if self.s_tmin <= sigma <= self.s_tmax else 0.0

    def effective(self, denoiser: Any) -> SamplerSettings:
        """The canonical form: two settings that give the same images are equal in it.

        Bounds are written out, S_churn is cut at its cap, and the churn window is moved to the time steps it contains;
        a window without time steps, or no churn, is deterministic sampling.
        """
        from edm_ray.diffusion.samplers.time_steps import time_steps

        steps = [sigma for sigma in time_steps(self, denoiser)[:-1].tolist() if self.gamma(sigma) > 0]
        low, high = self.sigma_range(denoiser)
        churn = (
            {"s_churn": min(self.s_churn, self.churn_cap), "s_tmin": min(steps), "s_tmax": max(steps)}
            if steps
            else {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
        )
        return dataclasses.replace(self, sigma_min=low, sigma_max=high, **churn)
