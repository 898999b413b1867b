"""A call of the denoiser, as multistep solvers remember it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Evaluation:
    """x without scaling, its noise level, and D there."""

    level: float
    x: torch.Tensor
    denoised: torch.Tensor

    @functools.cached_property
    def slope(self) -> torch.Tensor:
        """dx/dsigma."""
        return (self.x - self.denoised) / self.level
