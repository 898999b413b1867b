"""What a sampler does, in the paper's terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from edm_ray.diffusion.noise import VP
from edm_ray.errors import InputError

RANGES = {"edm": (0.002, 80.0), "iddpm": (0.002, 81.0), "ve": (0.02, 100.0)}
"""Default noise levels of each discretization (Table 1); those of vp follow from epsilon_s."""
GAMMA_MAX = math.sqrt(2.0) - 1.0
CHOICES = {
    "solver": ("heun", "euler", "dpmpp_2m", "dpmpp_3m_sde", "rk45", "euler_maruyama", "predictor_corrector"),
    "discretization": ("edm", "vp", "ve", "iddpm"),
    "schedule": ("linear", "vp", "ve"),
    "scaling": ("none", "vp"),
}
WHOLE = ("num_steps", "num_train_steps")
REAL: tuple[str, ...] = ("rho", "alpha", "s_churn", "s_tmin", "s_tmax", "s_noise", "epsilon_s", "c_1", "c_2", "snr")
REAL += ("tolerance", "guidance", "guidance_min", "guidance_max")
BOUNDS = ("sigma_min", "sigma_max")
BINS = "ascending (low, high, s_churn) that do not overlap, 0 <= low < high, s_churn 0 or more and finite"
RESTARTS = "(low, high, steps, times), 0 < low < high, both finite, steps a whole number >= 2, times one >= 1"


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
    guidance: float = 1.0
    """Weight of guidance: D = guide + guidance (D - guide), where the guide is the denoiser's own (autoguidance), or it
    is the denoiser itself without labels (classifier-free). 1 = none."""
    guidance_min: float = 0.0
    guidance_max: float = math.inf
    """Guided where guidance_min <= sigma <= guidance_max only."""

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, allowed: str) -> None:
            if not condition:
                raise InputError(f"sampler.{name}={getattr(self, name)!r} is not allowed: {allowed}")

        self._take_plain_types(require)
        for name in WHOLE:
            require(getattr(self, name) >= 2, name, "a whole number, at least 2")
        for name, allowed in CHOICES.items():
            require(getattr(self, name) in allowed, name, " or ".join(allowed))
        for name in ("rho", "alpha", "c_1", "c_2", "snr", "tolerance"):
            require(0 < getattr(self, name) < math.inf, name, "greater than 0, finite")
        require(0 < self.epsilon_s < 1, "epsilon_s", "between 0 and 1")
        for name in BOUNDS:
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, "greater than 0, finite")
        if self.sigma_min is not None and self.sigma_max is not None:
            require(self.sigma_min < self.sigma_max, "sigma_min", f"less than sigma_max={self.sigma_max}")
        require(0 <= self.s_churn < math.inf, "s_churn", "0 or more, finite")
        require(0 <= self.s_tmin < math.inf, "s_tmin", "0 or more, finite")
        require(self.s_tmax >= 0, "s_tmax", "0 or more, at least s_tmin; inf for no bound")
        require(self.s_tmin <= self.s_tmax, "s_tmin", f"at most s_tmax={self.s_tmax}")
        require(0 <= self.s_noise < math.inf, "s_noise", "0 or more, finite")
        require(0 <= self.guidance < math.inf, "guidance", "0 or more, finite; 1 is none")
        require(0 <= self.guidance_min < math.inf, "guidance_min", "0 or more, finite")
        require(self.guidance_min <= self.guidance_max, "guidance_min", f"at most guidance_max={self.guidance_max}")
        edge = 0.0
        for low, high, churn in self.churn_bins:
            require(edge <= low < high and 0 <= churn < math.inf, "churn_bins", BINS)
            edge = high
        require(not (self.churn_bins and self.s_churn), "s_churn", "0 with churn_bins, which replace it")
        for low, high, steps, times in self.restarts:
            require(0 < low < high < math.inf and steps >= 2 and times >= 1, "restarts", RESTARTS)
        if self.solver not in ("heun", "euler"):
            require(self.s_churn == 0, "s_churn", f"0 with solver {self.solver}; heun and euler take it")
            require(self.churn_bins == (), "churn_bins", f"empty with solver {self.solver}; heun and euler take them")
            require(self.restarts == (), "restarts", f"empty with solver {self.solver}; heun and euler take them")

    def _take_plain_types(self, require: Callable[[bool, str, str], None]) -> None:
        """Numbers of any library and lists become float, int and tuple, so that equal settings are written equally."""

        def real(value: Any) -> bool:
            return isinstance(value, Real) and not isinstance(value, bool)

        def whole(value: Any) -> bool:
            return isinstance(value, Integral) and not isinstance(value, bool)

        def rows(name: str, width: int) -> list[Any]:
            given = getattr(self, name)
            allowed = {"churn_bins": BINS, "restarts": RESTARTS}[name]
            require(isinstance(given, (list, tuple)), name, allowed)
            for row in given:
                fits = isinstance(row, (list, tuple)) and len(row) == width and all(map(real, row))
                require(fits and (name == "churn_bins" or all(map(whole, row[2:]))), name, allowed)
            return list(given)

        for name in WHOLE:
            require(whole(getattr(self, name)), name, "a whole number, at least 2")
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in REAL + BOUNDS:
            value = getattr(self, name)
            if value is not None or name in REAL:
                require(real(value), name, "a number")
                object.__setattr__(self, name, float(value))
        bins = tuple((float(low), float(high), float(churn)) for low, high, churn in rows("churn_bins", 3))
        restarts = tuple((float(a), float(b), int(steps), int(times)) for a, b, steps, times in rows("restarts", 4))
        object.__setattr__(self, "churn_bins", bins)
        object.__setattr__(self, "restarts", restarts)

    @property
    def churn_cap(self) -> float:
        """S_churn above which nothing changes: gamma is capped at sqrt(2) - 1 a step (Algorithm 2)."""
        return self.num_steps * GAMMA_MAX

    @property
    def nfe(self) -> int:
        """Network evaluations an image: Heun's last step is an Euler step, and the guide is evaluated too where it
        guides. 0 for rk45: it adapts, so nobody knows."""
        if self.solver == "rk45":
            return 0
        order = 2 if self.solver in ("heun", "predictor_corrector") else 1
        extra = sum(order * steps * times for _, _, steps, times in self.restarts)
        return order * self.num_steps - (self.solver == "heun") + extra + self._nfe_of_guide(order, extra)

    def _nfe_of_guide(self, order: int, extra: int) -> int:
        """At the time steps' own noise levels; all evaluations of restarts count as guided."""
        if self.guidance == 1:
            return 0
        from edm_ray.diffusion.samplers.time_steps import noise_levels

        inside = [self.guidance_min <= level <= self.guidance_max for level in noise_levels(self, None)]
        # Heun looks at the first level once and at each of the others twice: at the end of a step, and at the next.
        return order * sum(inside) - (self.solver == "heun" and inside[0]) + extra * any(inside)

    def sigma_range(self, denoiser: Any) -> tuple[float, float]:
        """(sigma_min, sigma_max) within what the denoiser knows. Raises InputError when nothing is left."""
        low, high = self._table_range()
        low = max(self.sigma_min or low, float(getattr(denoiser, "sigma_min", 0.0)))
        high = min(self.sigma_max or high, float(getattr(denoiser, "sigma_max", math.inf)))
        if not low < high:
            raise InputError(f"sampler.sigma_min={low} is not allowed: less than sigma_max={high}")
        return low, high

    def _table_range(self) -> tuple[float, float]:
        if self.discretization == "vp":
            return VP().sigma(self.epsilon_s), VP().sigma(1.0)
        return RANGES[self.discretization]

    def churn_at(self, sigma: float) -> float:
        """The S_churn that acts at a step which starts at ``sigma``, at most its cap."""
        if self.churn_bins:
            churn = next((churn for low, high, churn in self.churn_bins if low <= sigma < high), 0.0)
        else:
            churn = self.s_churn if self.s_tmin <= sigma <= self.s_tmax else 0.0
        return min(churn, self.churn_cap)

    def gamma(self, sigma: float) -> float:
        """Relative increase of the noise level at a step that starts at ``sigma`` (Algorithm 2, line 4)."""
        churn = self.churn_at(sigma)
        # N g / N may round to something below g, and a capped S_churn must act as any above it.
        return GAMMA_MAX if churn == self.churn_cap else min(churn / self.num_steps, GAMMA_MAX)

    def effective(self, denoiser: Any) -> SamplerSettings:
        """The canonical form: settings that give the same images are equal in it (`samplers.canonical`)."""
        from edm_ray.diffusion.samplers.canonical import canonical

        return canonical(self, denoiser)
