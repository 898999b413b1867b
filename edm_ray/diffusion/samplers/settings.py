"""What a sampler does, in the paper's terms."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from edm_ray.diffusion.schedules import VP
from edm_ray.errors import InputError

RANGES = {
    "edm": (0.002, 80.0),
    "iddpm": (0.002, 81.0),
    "vp": (VP().sigma(1e-3), VP().sigma(1.0)),
    "ve": (0.02, 100.0),
}
"""Default noise levels of each discretization (Table 1)."""
GAMMA_MAX = math.sqrt(2.0) - 1.0
CHOICES = {
    "solver": ("heun", "euler", "dpmpp_2m", "dpmpp_3m_sde", "rk45", "euler_maruyama", "predictor_corrector"),
    "discretization": ("edm", "vp", "ve", "iddpm"),
    "schedule": ("linear", "vp", "ve"),
    "scaling": ("none", "vp"),
}


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Settings of Algorithms 1 and 2, generalised to every column of Table 1, and of the samplers compared with."""

    num_steps: int = 18
    """Number of time steps N; at least 2."""
    sigma_min: float | None = None
    """None: that of the discretization, or the denoiser's own bound where that is higher."""
    sigma_max: float | None = None
    """None: that of the discretization, or the denoiser's own bound where that is lower."""
    rho: float = 7.0
    """Warp of the edm time steps: larger = shorter steps at low noise."""
    solver: str = "heun"
    """heun, euler, dpmpp_2m, dpmpp_3m_sde, rk45, euler_maruyama or predictor_corrector."""
    alpha: float = 1.0
    """heun only: 1 Heun, 1/2 midpoint, 2/3 Ralston (appendix D.2)."""
    discretization: str = "edm"
    """Which noise levels are visited: edm, vp, ve or iddpm."""
    schedule: str = "linear"
    """sigma(t): linear, vp or ve."""
    scaling: str = "none"
    """s(t): none or vp."""
    s_churn: float = 0.0
    """Amount of noise added over the whole run; acts up to num_steps * (sqrt(2) - 1), above it nothing changes."""
    s_tmin: float = 0.0
    """Lowest noise level at which noise is added."""
    s_tmax: float = math.inf
    """Highest noise level at which noise is added."""
    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""
    churn_bins: tuple[tuple[float, float, float], ...] = ()
    """(low, high, s_churn): S_churn where low <= sigma < high, instead of s_churn, s_tmin and s_tmax."""
    restarts: tuple[tuple[float, float, int, int], ...] = ()
    """(low, high, steps, times): at the time step nearest low, go up to high and back in ``steps``, ``times`` times."""
    epsilon_s: float = 1e-3
    """Smallest t of the vp schedule and discretization."""
    c_1: float = 0.001
    """iddpm: least ratio of neighbouring abar."""
    c_2: float = 0.008
    """iddpm: offset of the cosine schedule."""
    num_train_steps: int = 1000
    """iddpm: M, the number of noise levels of its grid."""
    snr: float = 0.16
    """predictor_corrector: signal-to-noise ratio of the Langevin step."""
    tolerance: float = 1e-5
    """rk45: relative and absolute tolerance."""

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, allowed: str) -> None:
            if not condition:
                raise InputError(f"sampler.{name}={getattr(self, name)!r} is not allowed: {allowed}")

        require(isinstance(self.num_steps, int) and self.num_steps >= 2, "num_steps", "a whole number, at least 2")
        require(
            isinstance(self.num_train_steps, int) and self.num_train_steps >= 2,
            "num_train_steps",
            "a whole number, at least 2",
        )
        for name, allowed in CHOICES.items():
            require(getattr(self, name) in allowed, name, " or ".join(allowed))
        for name in ("rho", "alpha", "c_1", "c_2", "snr", "tolerance"):
            require(0 < getattr(self, name) < math.inf, name, "greater than 0, finite")
        require(self.epsilon_s > 0 and self.epsilon_s < 1, "epsilon_s", "between 0 and 1")
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, "greater than 0, finite")
        if self.sigma_min is not None and self.sigma_max is not None:
            require(self.sigma_min < self.sigma_max, "sigma_min", f"less than sigma_max={self.sigma_max}")
        require(0 <= self.s_churn < math.inf, "s_churn", "0 or more, finite")
        require(0 <= self.s_tmin < math.inf, "s_tmin", "0 or more, finite")
        require(self.s_tmin <= self.s_tmax, "s_tmin", f"at most s_tmax={self.s_tmax}")
        require(0 <= self.s_noise < math.inf, "s_noise", "0 or more, finite")
        edge = 0.0
        for low, high, churn in self.churn_bins:
            fits = edge <= low < high and 0 <= churn < math.inf
            require(fits, "churn_bins", "ascending (low, high, s_churn) that do not overlap, low < high, s_churn >= 0")
            edge = high
        require(not (self.churn_bins and self.s_churn), "s_churn", "0 with churn_bins, which replace it")
        for low, high, steps, times in self.restarts:
            fits = 0 < low < high < math.inf and steps >= 2 and times >= 1
            require(fits, "restarts", "(low, high, steps, times), 0 < low < high, steps >= 2, times >= 1")
        if self.solver not in ("heun", "euler"):
            require(self.s_churn == 0, "s_churn", f"0 with solver {self.solver}; heun and euler take it")
            require(self.churn_bins == (), "churn_bins", f"empty with solver {self.solver}; heun and euler take them")
            require(self.restarts == (), "restarts", f"empty with solver {self.solver}; heun and euler take them")

    @property
    def churn_cap(self) -> float:
        """S_churn above which nothing changes: gamma is capped at sqrt(2) - 1 a step (Algorithm 2)."""
        return self.num_steps * GAMMA_MAX

    @property
    def nfe(self) -> int:
        """Network evaluations an image: Heun's last step is an Euler step. 0 for rk45: it adapts, so nobody knows."""
        if self.solver == "rk45":
            return 0
        order = 2 if self.solver in ("heun", "predictor_corrector") else 1
        extra = sum(order * steps * times for _, _, steps, times in self.restarts)
        return order * self.num_steps - (self.solver == "heun") + extra

    def sigma_range(self, denoiser: Any) -> tuple[float, float]:
        """(sigma_min, sigma_max) within what the denoiser knows. Raises InputError when nothing is left."""
        low, high = RANGES[self.discretization]
        low = max(self.sigma_min or low, float(getattr(denoiser, "sigma_min", 0.0)))
        high = min(self.sigma_max or high, float(getattr(denoiser, "sigma_max", math.inf)))
        if not low < high:
            raise InputError(f"sampler.sigma_min={low} is not allowed: less than sigma_max={high}")
        return low, high

    def gamma(self, sigma: float) -> float:
        """Relative increase of the noise level at a step that starts at ``sigma`` (Algorithm 2, line 4)."""
        if self.churn_bins:
            churn = next((churn for low, high, churn in self.churn_bins if low <= sigma < high), 0.0)
            return min(churn / self.num_steps, GAMMA_MAX)
        return min(self.s_churn / self.num_steps, GAMMA_MAX) if self.s_tmin <= sigma <= self.s_tmax else 0.0

    def effective(self, denoiser: Any) -> SamplerSettings:
        """The canonical form: two settings that give the same images are equal in it.

        Bounds are written out, settings that nothing reads take their default, S_churn is cut at its cap, and the churn
        window is moved to the time steps it contains; a window without time steps, or no churn, is deterministic.
        """
        from edm_ray.diffusion.samplers.time_steps import noise_levels

        low, high = self.sigma_range(denoiser)
        churned = [sigma for sigma in noise_levels(self, denoiser) if self.gamma(sigma) > 0]
        changes: dict[str, Any] = {"sigma_min": low, "sigma_max": high}
        if self.churn_bins:
            bins = [
                (a, b, min(churn, self.churn_cap))
                for a, b, churn in self.churn_bins
                if churn > 0 and any(a <= sigma < b for sigma in churned)
            ]
            changes |= {"churn_bins": tuple(bins)}
        if self.churn_bins or not churned:
            changes |= {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf}
        else:
            changes |= {"s_churn": min(self.s_churn, self.churn_cap), "s_tmin": min(churned), "s_tmax": max(churned)}
        unread = self._unread(noisy=bool(churned))
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in unread}
        return dataclasses.replace(self, **{**changes, **defaults})

    def _unread(self, noisy: bool) -> set[str]:
        """Names of settings that do not act together with the others; noisy: some step adds churn noise."""
        unread = set()
        if self.solver in ("dpmpp_2m", "dpmpp_3m_sde", "predictor_corrector"):
            unread |= {"schedule", "scaling"}
        if self.solver != "heun":
            unread.add("alpha")
        if self.solver != "predictor_corrector":
            unread.add("snr")
        if self.solver != "rk45":
            unread.add("tolerance")
        if self.discretization != "edm" and not self.restarts:
            unread.add("rho")
        if self.discretization != "iddpm":
            unread |= {"c_1", "c_2", "num_train_steps"}
        if self.discretization != "vp" and (self.schedule != "vp" or "schedule" in unread):
            unread.add("epsilon_s")
        if not (noisy or self.restarts or self.solver in ("dpmpp_3m_sde", "euler_maruyama", "predictor_corrector")):
            unread.add("s_noise")
        return unread
