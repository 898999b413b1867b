"""Noise schedules sigma(t), scalings s(t) and the iDDPM grid (Karras et al. 2022, Table 1).

Time and noise level are host floats: they are decided before anything runs on a device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import torch

from edm_ray.errors import InputError


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
class VE:
    """sigma(t) = sqrt(t) (VE column)."""

    def sigma(self, t: float) -> float:
        return math.sqrt(max(t, 0.0))

    def sigma_deriv(self, t: float) -> float:
        return 0.5 / math.sqrt(t)

    def sigma_inv(self, sigma: float) -> float:
        return sigma * sigma


@dataclass(frozen=True)
class VP:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) (VP column)."""

    beta_d: float = 19.9
    beta_min: float = 0.1

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


@functools.lru_cache(maxsize=16)
def iddpm_grid(steps: int, c_1: float, c_2: float, dtype: torch.dtype = torch.float64) -> tuple[float, ...]:
    """u_0 > ... > u_M = 0 of iDDPM (Table 1; appendix C.3), M = ``steps``.

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar(j-1) / abar(j), c_1) - 1), abar(j) = sin^2(pi/2 j / (M (1 + c_2))).
    abar is evaluated in float32, as the models that use the grid were trained; ``dtype`` is that of the recursion:
    float64 in samplers, float32 in the network's own table.
    """
    alpha = (0.5 * math.pi * torch.arange(steps + 1) / steps / (c_2 + 1)).sin() ** 2
    u = torch.zeros(steps + 1, dtype=dtype)
    for j in range(steps, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (alpha[j - 1] / alpha[j]).clip(min=c_1) - 1).sqrt()
    return tuple(u.tolist())
