"""Noise: schedules sigma(t), scalings s(t), the iDDPM grid, and every constant of theirs (Karras et al. 2022, Table 1).

Preconditionings, objectives and the configuration take their constants from here; no default is written twice. Time and
noise level are host floats, decided before anything runs on a device, so this file needs torch for the iDDPM grid only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

from edm_ray.errors import InputError, require

SIGMA_DATA = 0.5
"""Standard deviation of the paper's data in [-1, 1]."""
MOST_LEVELS = 10_000
"""Noise levels of a sampler or a grid; ten times those of any published one. Each is computed and kept."""
LEAST_SHARE = 0.5
"""The least share of a log-normal distribution that must lie in the range it is restricted to."""


class Schedule(Protocol):
    """sigma(t) with its derivative and inverse."""

    def sigma(self, t: float) -> float: ...

    def sigma_deriv(self, t: float) -> float: ...

    def sigma_inv(self, sigma: float) -> float: ...


@dataclass(frozen=True)
class Linear:
    """sigma(t) = t (iDDPM, DDIM and EDM columns)."""

    def sigma(self, t: float) -> float:
        return t

    def sigma_deriv(self, t: float) -> float:
        return 1.0

    def sigma_inv(self, sigma: float) -> float:
        return sigma


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(p_mean, p_std^2): what the paper trains on (section 5)."""

    p_mean: float = -1.2
    p_std: float = 1.2

    def shares(self, sigma_min: float, sigma_max: float) -> tuple[float, float]:
        """P(sigma < sigma_min) and P(sigma < sigma_max): what is drawn when only this range may be.

        Raises InputError where less than LEAST_SHARE of the distribution lies in the range.
        """
        low, high = (
            0.0 if sigma <= 0 else 0.5 * math.erfc((self.p_mean - math.log(sigma)) / (self.p_std * math.sqrt(2)))
            for sigma in (sigma_min, sigma_max)
        )
        require(
            high - low >= LEAST_SHARE,
            "objective.p_mean",
            self.p_mean,
            f"with p_std={self.p_std}, {100 * (high - low):.3g} % of these noise levels lie in {sigma_min:.6g}.."
            f"{sigma_max:.6g}, which is what the preconditioning knows; at least {100 * LEAST_SHARE:.0f} % must",
        )
        return low, high

    def check(self, where: str) -> None:
        """Raises InputError, with the field below ``where``, for constants that no distribution has."""
        require(math.isfinite(self.p_mean), f"{where}.p_mean", self.p_mean, "a finite number")
        require(0 < self.p_std < math.inf, f"{where}.p_std", self.p_std, "greater than 0")


@dataclass(frozen=True)
class VE:
    """sigma(t) = sqrt(t) (VE column), trained on sigma_min..sigma_max."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def check(self, where: str) -> None:
        """Raises InputError, with the field below ``where``, for a range that is none."""
        require(0 <= self.sigma_min < math.inf, f"{where}.sigma_min", self.sigma_min, "0 or more, finite")
        require(0 < self.sigma_max < math.inf, f"{where}.sigma_max", self.sigma_max, "greater than 0, finite")
        allowed = f"less than sigma_max={self.sigma_max}"
        require(self.sigma_min < self.sigma_max, f"{where}.sigma_min", self.sigma_min, allowed)

    def sigma(self, t: float) -> float:
        return math.sqrt(max(t, 0.0))

    def sigma_deriv(self, t: float) -> float:
        return 0.5 / math.sqrt(t)

    def sigma_inv(self, sigma: float) -> float:
        return sigma * sigma


@dataclass(frozen=True)
class VP:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) (VP column), trained on t in epsilon_t..1."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    @property
    def sigma_min(self) -> float:
        """The lowest noise level of training, that of epsilon_t."""
        return self.sigma(self.epsilon_t)

    @property
    def sigma_max(self) -> float:
        """The highest noise level of training, that of t = 1."""
        return self.sigma(1.0)

    def check(self, where: str) -> None:
        """Raises InputError, with the field below ``where``. (`from_range` makes schedules that no training has.)"""
        require(0 < self.beta_d < math.inf, f"{where}.beta_d", self.beta_d, "greater than 0, finite")
        require(0 <= self.beta_min < math.inf, f"{where}.beta_min", self.beta_min, "0 or more, finite")
        require(0 < self.epsilon_t < 1, f"{where}.epsilon_t", self.epsilon_t, "greater than 0, less than 1")

    @classmethod
    def from_range(cls, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> VP:
        """The betas with sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max; beta_min may come out negative."""
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
        if beta_d <= 0:
            raise InputError(
                f"sampler.sigma_min={sigma_min} is not allowed with epsilon_s={epsilon_s} and the vp schedule: "
                f"at most {math.sqrt(math.expm1(epsilon_s * high))}"
            )
        return cls(beta_d, high - beta_d / 2)

    def sigma(self, t: float) -> float:
        """0 where the exponent is negative, which happens below epsilon_s when beta_min < 0."""
        return math.sqrt(max(math.expm1(0.5 * self.beta_d * t * t + self.beta_min * t), 0.0))

    def sigma_deriv(self, t: float) -> float:
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def sigma_inv(self, sigma: float) -> float:
        """The form of the root without cancellation is taken for either sign of beta_min."""
        log = math.log1p(sigma * sigma)
        root = math.sqrt(self.beta_min**2 + 2 * self.beta_d * log)
        return 2 * log / (root + self.beta_min) if self.beta_min >= 0 else (root - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class Path:
    """A schedule with a scaling: x(t) = s(t) (y + sigma(t) n) (section 2)."""

    schedule: Schedule
    scaling: str = "none"

    def sigma(self, t: float) -> float:
        return self.schedule.sigma(t)

    def sigma_deriv(self, t: float) -> float:
        return self.schedule.sigma_deriv(t)

    def sigma_inv(self, sigma: float) -> float:
        return self.schedule.sigma_inv(sigma)

    def s(self, t: float) -> float:
        """1, or 1 / sqrt(1 + sigma^2)."""
        return 1.0 if self.scaling == "none" else 1 / math.sqrt(1 + self.sigma(t) ** 2)

    def s_deriv(self, t: float) -> float:
        """0, or -sigma sigma' s^3."""
        return 0.0 if self.scaling == "none" else -self.sigma(t) * self.sigma_deriv(t) * self.s(t) ** 3


def make_path(schedule: str, scaling: str, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> Path:
    """Path by names: schedule linear, vp or ve; scaling none or vp. The betas of vp are solved from the range."""
    if schedule == "vp":
        return Path(VP.from_range(sigma_min, sigma_max, epsilon_s), scaling)
    return Path(VE() if schedule == "ve" else Linear(), scaling)


@dataclass(frozen=True)
class IDDPMGrid:
    """The noise levels u_0 > ... > u_M = 0 of iDDPM, M = num_train_steps; trained on u_0..u_{M-1}."""

    num_train_steps: int = 1000
    c_1: float = 0.001
    c_2: float = 0.008

    def levels(self) -> tuple[float, ...]:
        """u_0..u_M by the recursion in float32, as the networks that were trained on them have them."""
        return iddpm_grid(self.num_train_steps, self.c_1, self.c_2, single=True)

    @property
    def sigma_min(self) -> float:
        """u_{M-1}."""
        return self.levels()[-2]

    @property
    def sigma_max(self) -> float:
        """u_0."""
        return self.levels()[0]

    def check(self, where: str) -> None:
        """Raises InputError, with the field below ``where``, for constants that make no grid."""
        fits = 2 <= self.num_train_steps <= MOST_LEVELS
        require(fits, f"{where}.num_train_steps", self.num_train_steps, f"from 2 to {MOST_LEVELS:,}")
        require(0 < self.c_1 < 1, f"{where}.c_1", self.c_1, "greater than 0, less than 1")
        require(0 <= self.c_2 < math.inf, f"{where}.c_2", self.c_2, "0 or more, finite")


@functools.lru_cache(maxsize=16)
def iddpm_grid(steps: int, c_1: float, c_2: float, single: bool = False) -> tuple[float, ...]:
    """u_0 > ... > u_M = 0 of iDDPM (Table 1; appendix C.3), M = ``steps``.

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar(j-1) / abar(j), c_1) - 1), abar(j) = sin^2(pi/2 j / (M (1 + c_2))).
    abar is evaluated in float32, as the models that use the grid were trained; the recursion is float64 in samplers,
    float32 (``single``) in the network's own table.
    """
    import numpy as np  # here, because the configuration, which is to load without them, reads the constants above
    import torch

    alpha = (0.5 * math.pi * torch.arange(steps + 1, device="cpu") / steps / (c_2 + 1)).sin() ** 2
    ratio = (alpha[:-1] / alpha[1:]).clip(min=c_1).numpy()
    # In NumPy, since PyTorch's square root is not correctly rounded on every processor: levels are part of what names
    # an image.
    number: type[np.floating] = np.float32 if single else np.float64
    u = np.zeros(steps + 1, number)
    for j in range(steps, 0, -1):
        u[j - 1] = np.sqrt((u[j] * u[j] + number(1)) / number(ratio[j - 1]) - number(1))
    return tuple(u.tolist())
