"""Samplers of the reverse-time SDE as Song et al. 2021 used them: Euler-Maruyama and predictor-corrector."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.noise import Path
from edm_ray.diffusion.samplers.base import Noise, Sampler
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.values import require


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Sampler):
    """Euler-Maruyama, for any schedule and scaling:

    dx = (s'/s) x dt + 2 s (sigma'/sigma) (x/s - D(x/s; sigma)) dt + s sqrt(2 sigma sigma') dw, t running down.
    """

    solver = "euler_maruyama"
    is_sde: ClassVar[bool] = True

    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        """Step i uses noise(i); the last step, to noise level 0, is D itself."""
        t = [path.sigma_inv(level) for level in levels[:-1]]
        for i, (start, end) in enumerate(itertools.pairwise(t)):
            spread = path.s(start) * (2 * path.sigma(start) * path.sigma_deriv(start) * (start - end)) ** 0.5
            x = self._drift(D, x, start, end, path) + noise(i).to(x) * (spread * self.s_noise)
        return D(x / path.s(t[-1]), path.sigma(t[-1]))

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[Evaluation]
    ) -> torch.Tensor:
        path = self.path(D)
        a, b = path.sigma_inv(start), path.sigma_inv(end)
        return self._drift(D, x * path.s(a), a, b, path) / path.s(b)

    @staticmethod
    def _drift(D: AtLevel, x: torch.Tensor, start: float, end: float, path: Path) -> torch.Tensor:
        """The mean of one step from time start down to time end."""
        sigma, s, rate = path.sigma(start), path.s(start), path.sigma_deriv(start)
        denoised = D(x / s, sigma)
        drift = (path.s_deriv(start) / s) * x + (2 * rate / sigma) * (x - s * denoised)
        return x + (end - start) * drift

    def _check(self) -> None:
        super()._check()
        require(0 <= self.s_noise < math.inf, "s_noise", self.s_noise, "0 or more, finite")


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """A Langevin step, then a reverse diffusion step, at every noise level.

    The schedule is not read: both steps are between noise levels. scaling "none" is Song's method for VE, "vp" his for
    VP, where a step keeps a share alpha = (s(now) / s(next))^2 of the variance. The corrector's step size uses the
    norms of each image instead of their mean over the batch, so that an image does not depend on the others.
    """

    solver = "predictor_corrector"
    evaluations: ClassVar[int] = 2
    follows_schedule: ClassVar[bool] = False
    is_sde: ClassVar[bool] = True

    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""
    snr: float = 0.16
    """Signal-to-noise ratio of the Langevin step."""

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        """Step i uses noise(i) to predict, noise(i, draw=1) to correct. x is without scaling, also for VP."""
        for i, (level, after) in enumerate(itertools.pairwise(levels)):
            kept = self._kept_variance(level, after)
            score = (D(x, level) - x) / level**2
            n = noise(i, draw=1).to(x)
            ratio = n.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(1e-300)
            size = (2 * kept * (self.snr * ratio) ** 2).reshape(-1, 1, 1, 1)
            x = x + size * score + (2 * size).sqrt() * self.s_noise * n
            denoised = D(x, level)
            if after == 0:
                return denoised
            x = self._predict(x, denoised, noise(i).to(x) * self.s_noise, level, after)
        raise AssertionError("the last noise level is 0")

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[Evaluation]
    ) -> torch.Tensor:
        """The predictor."""
        return self._predict(x, D(x, start), 0.0, start, end)

    def _kept_variance(self, level: float, after: float) -> float:
        """alpha of a step of VP; 1 for VE."""
        return (1 + after**2) / (1 + level**2) if self.scaling == "vp" else 1.0

    def _predict(
        self, x: torch.Tensor, denoised: torch.Tensor, n: torch.Tensor | float, level: float, after: float
    ) -> torch.Tensor:
        """The reverse diffusion step with noise n; x without scaling, before and after."""
        score = (denoised - x) / level**2
        if self.scaling == "none":
            variance = level**2 - after**2
            return x + variance * score + math.sqrt(variance) * n
        s, s_next = 1 / math.sqrt(1 + level**2), 1 / math.sqrt(1 + after**2)
        kept = self._kept_variance(level, after)
        mean = (2 - math.sqrt(kept)) * s * x + (1 - kept) / s * score
        return (mean + math.sqrt(1 - kept) * n) / s_next

    def _check(self) -> None:
        super()._check()
        require(0 <= self.s_noise < math.inf, "s_noise", self.s_noise, "0 or more, finite")
        require(0 < self.snr < math.inf, "snr", self.snr, "greater than 0, finite")
