"""Training objectives: the noise distribution p_train(sigma) and the weighting lambda(sigma) (Table 1, "Training").

They know nothing of the preconditioning: configuration D of the paper is EDM preconditioning with the old objective.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from edm_ray.diffusion import noise as noise_schedules


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the four have in common; p_mean, p_std and sigma_data are read by "edm" only."""

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    draw: str = "uniform"
    """The unit draw that `sigma` takes: uniform in (0, 1), or normal."""

    def __call__(self, **constants: Any) -> Self:
        """The same objective with other constants."""
        return dataclasses.replace(self, **constants)

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        """Unit draws [B] -> noise levels [B]."""
        raise NotImplementedError

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


@dataclass(frozen=True, kw_only=True)
class EDM(Objective):
    """ln sigma ~ N(p_mean, p_std^2), lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (section 5)."""

    draw: str = "normal"

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        return (draw * self.p_std + self.p_mean).exp()

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Makes the loss of F at initialisation 1 at every noise level."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True, kw_only=True)
class VP(Objective):
    """t ~ U(epsilon_t, 1), sigma = sigma_VP(t); draw 0 is t = 1."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        t = 1 + draw * (self.epsilon_t - 1)
        return (0.5 * self.beta_d * t**2 + self.beta_min * t).expm1().sqrt()


@dataclass(frozen=True, kw_only=True)
class VE(Objective):
    """ln sigma ~ U(ln sigma_min, ln sigma_max)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        return self.sigma_min * (draw * math.log(self.sigma_max / self.sigma_min)).exp()


@dataclass(frozen=True, kw_only=True)
class IDDPM(Objective):
    """sigma = u_j, j uniform in 0..M-1 (the simple loss; no variational term)."""

    c_1: float = 0.001
    c_2: float = 0.008
    steps: int = 1000

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        grid = _iddpm_grid(self.steps, self.c_1, self.c_2, draw.device, draw.dtype)
        return grid[(draw * self.steps).long().clamp(0, self.steps - 1)]


@functools.lru_cache(maxsize=16)
def _iddpm_grid(steps: int, c_1: float, c_2: float, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """u_j in float32, then in ``dtype``, on the device: copied there once, since a copy makes the host wait."""
    return torch.tensor(noise_schedules.iddpm_grid(steps, c_1, c_2, torch.float32)).to(device, dtype)


OBJECTIVES: dict[str, Objective] = {"edm": EDM(), "vp": VP(), "ve": VE(), "iddpm": IDDPM()}
"""With the paper's constants; called, each gives a copy with others: OBJECTIVES["edm"](sigma_data=0.7)."""


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
