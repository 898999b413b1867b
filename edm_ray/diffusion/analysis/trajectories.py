"""Trajectories of the probability flow ODE, kept as inner products: all that a linear solver's local errors need.

A step of a linear multistep solver is a sum of weights times x and D at noise levels. Its squared distance from the
trajectory is therefore a quadratic form in the inner products of x and D at all levels, whatever the size of the
images: one matrix [2K, 2K] for K levels serves every such solver and every choice of levels among the K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edm_ray.diffusion.denoiser import AtLevel

PIXELS_AT_ONCE = 1 << 16
"""Of one product: bounds its memory."""


@dataclass(frozen=True)
class Trajectories:
    """Of some images, at K noise levels, the highest first."""

    levels: tuple[float, ...]
    products: npt.NDArray[np.float64]
    """[2K, 2K]: mean over pixels and images of u_a u_b, where u = (x_1 ... x_K, D_1 ... D_K)."""


def inner_products(D: AtLevel, latents: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """Of the trajectories that begin at these latents: float64 [2K, 2K], sums over images and pixels.

    latents: unit normal [B, C, H, W]. levels: descending; between neighbours Heun's method takes one step, so 2 K - 1
    evaluations an image. States are kept in float32.
    """
    x = latents.to(torch.float64) * levels[0]
    states, denoised = [], []
    for i, level in enumerate(levels):
        now = D(x, level)
        states.append(x.to(torch.float32).flatten())
        denoised.append(now.to(torch.float32).flatten())
        if i + 1 < len(levels):
            after = levels[i + 1]
            slope = (x - now) / level
            ahead = x + (after - level) * slope
            x = x + (after - level) / 2 * (slope + (ahead - D(ahead, after)) / after)
    rows = torch.stack([*states, *denoised])
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(PIXELS_AT_ONCE, dim=1):
        exact = part.to(torch.float64)
        total += exact @ exact.T
    return total
