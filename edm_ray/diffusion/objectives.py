"""Training objectives: the noise distribution p_train(sigma) and the weighting lambda(sigma) (Table 1, "Training")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class EDM:
    """ln sigma ~ N(p_mean, p_std^2), lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (section 5)."""

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    draw: str = "normal"
    """The unit draw that `sigma` takes."""

    def sigma(self, draw: torch.Tensor) -> torch.Tensor:
        """Unit normal draws [B] -> noise levels [B]."""
        return (draw * self.p_std + self.p_mean).exp()

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """lambda(sigma): makes the loss of F at initialisation 1 at every noise level."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

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
        denoised = denoiser(images + noise * sigma, sigma.flatten(), class_labels, augment_labels)
        return self.weight(sigma) * (denoised - images) ** 2


OBJECTIVES: dict[str, Callable[..., Any]] = {"edm": EDM}
