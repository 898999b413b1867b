"""Gaussian data: the denoiser, the trajectories and the marginals are known in closed form."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)

SIGMA_DATA, MEAN = 0.5, 0.3


class Gaussian:
    """D of data N(mean, sd^2), independent pixels."""

    def __init__(self, mean: float = MEAN, sd: float = SIGMA_DATA) -> None:
        self.mean, self.sd, self.calls = mean, sd, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: object = None) -> torch.Tensor:
        self.calls += 1
        sigma = sigma.reshape(-1, 1, 1, 1)
        return (self.sd**2 * x + sigma**2 * self.mean) / (self.sd**2 + sigma**2)

    def solve(self, x: torch.Tensor, start: float, end: float) -> torch.Tensor:
        """The exact trajectory of the probability flow ODE from noise level start to end."""
        return self.mean + (x - self.mean) * ((self.sd**2 + end**2) / (self.sd**2 + start**2)) ** 0.5


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.linspace(-1.7, 1.9, 24, dtype=torch.float64).reshape(2, 3, 2, 2)
