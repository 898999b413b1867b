"""RK45 (Dormand and Prince) on the probability flow ODE, with scipy as the solver, as Song et al. 2021 used it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.noise import Path
from edm_ray.diffusion.samplers.base import Noise, Sampler
from edm_ray.diffusion.samplers.heun import ode_step, slope
from edm_ray.diffusion.samplers.levels import rounded
from edm_ray.diffusion.samplers.values import require
from edm_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RK45(Sampler):
    """From sigma_max to sigma_min the steps adapt to ``tolerance``, so neither the discretization nor num_steps acts.

    The last step, to 0, is an Euler step. A grid of noise levels is not respected between the ends.
    """

    solver = "rk45"

    tolerance: float = 1e-5
    """Relative and absolute tolerance."""

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        """Each image is solved by itself, so that its step sizes do not depend on the batch."""
        return torch.cat([self._solve(D.of_image(k), x[k : k + 1], levels, path) for k in range(len(x))])

    def _solve(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path) -> torch.Tensor:
        first, last = (path.sigma_inv(level) for level in levels[:2])

        def rate(time: float, state: np.ndarray) -> np.ndarray:
            value = torch.from_numpy(state).to(x).reshape(x.shape)
            result: np.ndarray = slope(D, value, float(time), path).flatten().cpu().numpy()
            return result

        from scipy.integrate import solve_ivp  # half a second, which every other solver would wait for

        solution = solve_ivp(
            rate,
            (first, last),
            x.flatten().cpu().numpy(),
            method="RK45",
            rtol=self.tolerance,
            atol=self.tolerance,
            t_eval=[last],
        )
        if not solution.success:
            raise InputError(f"sampler.tolerance={self.tolerance}: rk45 stopped: {solution.message}")
        end = torch.from_numpy(solution.y[:, -1].copy()).to(x).reshape(x.shape)
        return ode_step(D, end, last, 0.0, path, None)

    def noise_levels(self, denoiser: Any = None) -> list[float]:
        """The two ends; nobody knows beforehand what lies between."""
        low, high = self.sigma_range(denoiser)
        return rounded([high, low], denoiser)

    @property
    def nfe(self) -> int:
        """0: the steps adapt, so nobody knows."""
        return 0

    def mean_steps(self, denoiser: Any = None) -> list[tuple[float, float, list[float]]]:
        raise InputError("sampler.solver='rk45' is not allowed here: its steps adapt to sampler.tolerance")

    def _acting(self, denoiser: Any) -> Self:
        return super()._acting(denoiser)._with_defaults({"num_steps", "rho", "discretization"})

    def _acting_levels(self, denoiser: Any) -> list[float] | None:
        return None

    def _check(self) -> None:
        super()._check()
        require(0 < self.tolerance < math.inf, "tolerance", self.tolerance, "greater than 0, finite")
        require(not self.sigmas, "sigmas", list(self.sigmas), "none with solver rk45, which chooses its own levels")
