"""Training objectives: the noise distribution p_train(sigma) and the weighting lambda(sigma) (Table 1, "Training").

They know nothing of the preconditioning: configuration D of the paper is EDM preconditioning with the old objective.
Where both are of one kind they share one object of constants (`diffusion.noise`).
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch

from edm_ray.diffusion import noise as constants
from edm_ray.errors import nearest, require


class Objective(abc.ABC):
    """p_train and lambda; `sigma` turns unit draws into noise levels, all of them in sigma_min..sigma_max."""

    draw: ClassVar[str] = "uniform"
    """The unit draw that `sigma` takes: uniform in (0, 1), or normal."""

    @abc.abstractmethod
    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        """Unit draws [B] -> noise levels [B]."""

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """lambda(sigma) = 1 / sigma^2, of the shape of ``sigma``."""
        return 1 / sigma**2

    def loss(
        self,
        denoiser: Callable[..., torch.Tensor],
        images: torch.Tensor,
        draw: torch.Tensor,
        noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """lambda(sigma) (D(y + sigma n) - y)^2 per pixel: images y and unit noise n [B, C, H, W], draw [B]."""
        sigma = self.sigma(draw).reshape(-1, 1, 1, 1)
        # Only a network that is trained with augmentation takes the fourth; closed-form denoisers do not.
        labels = (class_labels,) if augment_labels is None else (class_labels, augment_labels)
        denoised = denoiser(images + noise * sigma, sigma.flatten(), *labels)
        return self.weight(sigma) * (denoised - images) ** 2


@dataclass(frozen=True)
class EDM(Objective):
    """ln sigma ~ N(p_mean, p_std^2), lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (section 5).

    Around a denoiser that knows sigma_min..sigma_max only, the distribution is restricted to that range.
    """

    draw: ClassVar[str] = "normal"

    p_mean: float = constants.LogNormal.p_mean
    p_std: float = constants.LogNormal.p_std
    sigma_data: float = constants.SIGMA_DATA
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __post_init__(self) -> None:
        constants.LogNormal(self.p_mean, self.p_std).check("objective")
        require(0 < self.sigma_data < math.inf, "objective.sigma_data", self.sigma_data, "greater than 0, finite")
        self._shares()

    def _shares(self) -> tuple[float, float]:
        return constants.LogNormal(self.p_mean, self.p_std).shares(self.sigma_min, self.sigma_max)

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        low, high = self._shares()
        if (low, high) == (0.0, 1.0):
            return (draw * self.p_std + self.p_mean).exp()
        # The quantile of the draw, taken within the range.
        share = low + (high - low) * torch.special.ndtr(draw.double())
        level: torch.Tensor = (torch.special.ndtri(share) * self.p_std + self.p_mean).exp()
        return level.clamp(self.sigma_min, self.sigma_max).to(draw.dtype)

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Makes the loss of F at initialisation 1 at every noise level."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class VP(Objective):
    """t ~ U(epsilon_t, 1), sigma = sigma_VP(t); draw 0 is t = 1."""

    schedule: constants.VP = field(default_factory=constants.VP)

    def __post_init__(self) -> None:
        self.schedule.check("objective")

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        t = 1 + draw * (self.schedule.epsilon_t - 1)
        return (0.5 * self.schedule.beta_d * t**2 + self.schedule.beta_min * t).expm1().sqrt()


@dataclass(frozen=True)
class VE(Objective):
    """ln sigma ~ U(ln sigma_min, ln sigma_max)."""

    schedule: constants.VE = field(default_factory=constants.VE)

    def __post_init__(self) -> None:
        self.schedule.check("objective")
        require(self.schedule.sigma_min > 0, "objective.sigma_min", self.schedule.sigma_min, "greater than 0")

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        low, high = self.schedule.sigma_min, self.schedule.sigma_max
        return low * (draw * math.log(high / low)).exp()


@dataclass(frozen=True)
class IDDPM(Objective):
    """sigma = u_j, j uniform in 0..M-1 (the simple loss; no variational term)."""

    grid: constants.IDDPMGrid = field(default_factory=constants.IDDPMGrid)

    def __post_init__(self) -> None:
        self.grid.check("objective")

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        steps = self.grid.num_train_steps
        return _levels(self.grid, draw.device, draw.dtype)[(draw * steps).long().clamp(0, steps - 1)]


@functools.lru_cache(maxsize=16)
def _levels(grid: constants.IDDPMGrid, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """u_j in float32, then in ``dtype``, on the device: copied there once, since a copy makes the host wait."""
    return torch.tensor(grid.levels()).to(device, dtype)


OBJECTIVES: dict[str, type[Objective]] = {"edm": EDM, "vp": VP, "ve": VE, "iddpm": IDDPM}
_CONSTANTS: dict[str, type[Any]] = {"vp": constants.VP, "ve": constants.VE, "iddpm": constants.IDDPMGrid}


def objective(kind: str = "edm", **values: Any) -> Objective:
    """An objective by name, constants given flat: ``objective("vp", beta_d=5.0)``; the rest as in Table 1.

    edm: p_mean, p_std, sigma_data, sigma_min, sigma_max; vp: beta_d, beta_min, epsilon_t; ve: sigma_min, sigma_max;
    iddpm: num_train_steps, c_1, c_2. Raises InputError for a kind that there is not, and a constant it does not have.
    """
    require(kind in OBJECTIVES, "objective.kind", kind, ", ".join(OBJECTIVES))
    known = [entry.name for entry in fields(_CONSTANTS.get(kind, EDM))]
    for name, value in values.items():
        require(name in known, f"objective.{name}", value, f"{kind} has {', '.join(known)}{nearest(name, known)}")
    if kind == "edm":
        return EDM(**values)
    make: Callable[[Any], Objective] = OBJECTIVES[kind]
    return make(_CONSTANTS[kind](**values))


def loss_by_sigma(
    denoiser: Callable[..., torch.Tensor],
    objective: Objective,
    images: torch.Tensor,
    noise: torch.Tensor,
    sigmas: Sequence[float],
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted loss at given noise levels (figure 5a): images and unit noise [B, C, H, W] -> float64 [len(sigmas), B].

    The loss of an image is the mean over its pixels; the same noise is used at every level.
    """
    rows = []
    for level in sigmas:
        sigma = torch.full((len(images),), level, dtype=torch.float64, device=images.device)
        denoised = denoiser(images + noise * level, sigma, class_labels).to(torch.float64)
        rows.append(objective.weight(sigma) * ((denoised - images) ** 2).flatten(1).mean(1))
    return torch.stack(rows)
