"""D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (Table 1, "Network and preconditioning"). One class a kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edm_ray.config.kinds import Kinds
from edm_ray.diffusion import noise
from edm_ray.errors import require


@dataclass(frozen=True, kw_only=True)
class PreconditioningConfig:
    """What the four have in common."""

    kind: str = field(default="", init=False)

    @property
    def noise_range(self) -> tuple[float, float]:
        """The least and the greatest noise level that the denoiser knows."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EDMPreconditioning(PreconditioningConfig):
    """The paper's own."""

    kind: str = field(default="edm", init=False)
    sigma_data: float = noise.SIGMA_DATA
    """Standard deviation of the data in [-1, 1]. `edm-ray prepare` prints the data set's own."""
    sigma_min: float = 0.0
    """Noise levels that the network knows."""
    sigma_max: float | None = None
    """none = no limit."""

    def __post_init__(self) -> None:
        require(0 < self.sigma_data < math.inf, "preconditioning.sigma_data", self.sigma_data, "greater than 0, finite")
        low, high = self.noise_range
        require(0 <= low < math.inf, "preconditioning.sigma_min", low, "0 or more, finite")
        if self.sigma_max is not None:
            require(0 < high < math.inf, "preconditioning.sigma_max", high, "greater than 0, finite; none = no limit")
        require(low < high, "preconditioning.sigma_min", low, f"less than sigma_max={high}")

    @property
    def noise_range(self) -> tuple[float, float]:
        return self.sigma_min, math.inf if self.sigma_max is None else self.sigma_max


@dataclass(frozen=True, kw_only=True)
class VPPreconditioning(PreconditioningConfig):
    """Variance preserving."""

    kind: str = field(default="vp", init=False)
    beta_d: float = noise.VP.beta_d
    """Slope of beta(t)."""
    beta_min: float = noise.VP.beta_min
    """beta(0)."""
    epsilon_t: float = noise.VP.epsilon_t
    """The smallest time of training."""
    num_train_steps: int = noise.IDDPMGrid.num_train_steps
    """M: c_noise runs from 0 to M - 1."""

    def __post_init__(self) -> None:
        self.schedule.check("preconditioning")
        require(self.num_train_steps >= 2, "preconditioning.num_train_steps", self.num_train_steps, "at least 2")

    @property
    def schedule(self) -> noise.VP:
        return noise.VP(self.beta_d, self.beta_min, self.epsilon_t)

    @property
    def noise_range(self) -> tuple[float, float]:
        return self.schedule.sigma_min, self.schedule.sigma_max


@dataclass(frozen=True, kw_only=True)
class VEPreconditioning(PreconditioningConfig):
    """Variance exploding."""

    kind: str = field(default="ve", init=False)
    sigma_min: float = noise.VE.sigma_min
    """The least noise level that the network knows."""
    sigma_max: float = noise.VE.sigma_max
    """The greatest."""

    def __post_init__(self) -> None:
        self.schedule.check("preconditioning")

    @property
    def schedule(self) -> noise.VE:
        return noise.VE(self.sigma_min, self.sigma_max)

    @property
    def noise_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max


@dataclass(frozen=True, kw_only=True)
class IDDPMPreconditioning(PreconditioningConfig):
    """Improved DDPM."""

    kind: str = field(default="iddpm", init=False)
    num_train_steps: int = noise.IDDPMGrid.num_train_steps
    """M, the number of noise levels of the grid."""
    c_1: float = noise.IDDPMGrid.c_1
    """Least ratio of neighbouring abar."""
    c_2: float = noise.IDDPMGrid.c_2
    """Offset of the cosine schedule."""

    def __post_init__(self) -> None:
        self.grid.check("preconditioning")

    @property
    def grid(self) -> noise.IDDPMGrid:
        return noise.IDDPMGrid(self.num_train_steps, self.c_1, self.c_2)

    @property
    def noise_range(self) -> tuple[float, float]:
        return self.grid.sigma_min, self.grid.sigma_max


PRECONDITIONINGS: Kinds[PreconditioningConfig] = Kinds(
    "preconditioning",
    PreconditioningConfig,
    [EDMPreconditioning, VPPreconditioning, VEPreconditioning, IDDPMPreconditioning],
)
