"""Preconditioning: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, equation 7 and Table 1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from edm_ray.errors import InputError


class EDM(nn.Module):
    """The paper's own preconditioning: F sees unit variance and is trained on targets of unit variance (appendix B.6).

    network(x, noise_labels, class_labels, augment_labels) is F; it is kept as `model`, as in the official state dict.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.model = network
        self.sigma_data = sigma_data
        self.sigma_min, self.sigma_max = 0.0, math.inf

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """The nearest noise level that the network knows: every one."""
        return sigma

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Denoise. x [B, C, H, W], sigma [B] or a scalar, class_labels one-hot [B, classes] -> D float32 [B, C, H, W].

        Without labels a conditional network gets zeros. The algebra around the network is float32.
        """
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
        label_dim = int(getattr(self.model, "label_dim", 0))
        if label_dim == 0:
            class_labels = None
        elif class_labels is None:
            class_labels = torch.zeros(len(x), label_dim, device=x.device)
        elif class_labels.shape != (len(x), label_dim):
            raise InputError(
                f"class_labels={tuple(class_labels.shape)} is not allowed: one-hot rows of shape {(len(x), label_dim)}"
            )
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        c_in = 1 / variance.sqrt()
        c_noise = sigma.log() / 4
        output: torch.Tensor = self.model(c_in * x, c_noise.flatten(), class_labels, augment_labels)
        return c_skip * x + c_out * output.to(torch.float32)


PRECONDITIONERS: dict[str, Callable[..., nn.Module]] = {"edm": EDM}
