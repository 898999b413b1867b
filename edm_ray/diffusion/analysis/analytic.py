"""Denoisers known in closed form: Gaussian mixtures, and the ideal denoiser of a finite data set."""

from __future__ import annotations

import torch

from edm_ray.diffusion.denoiser import EveryLevel
from edm_ray.errors import InputError


class GaussianMixture(EveryLevel):
    """D of sum_k w_k N(mean_k, sd_k^2 I). means: [K, C, H, W]; sds, weights: [K]."""

    def __init__(self, means: torch.Tensor, sds: torch.Tensor, weights: torch.Tensor) -> None:
        if means.ndim != 4 or sds.shape != (len(means),) or weights.shape != (len(means),):
            shapes = tuple(means.shape), tuple(sds.shape), tuple(weights.shape)
            raise InputError(f"means, sds, weights of shapes {shapes} are not allowed: [K, C, H, W], [K], [K]")
        self.means = means.to(torch.float64)
        self.sds = sds.to(self.means)
        self.weights = (weights / weights.sum()).to(self.means)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """E[y | x] at noise levels sigma ([B] or a scalar): float64, like x [B, C, H, W]."""
        x, means = x.to(self.means), self.means.flatten(1)
        flat = x.flatten(1)
        sigma = sigma.to(x).reshape(-1, 1).expand(len(x), 1)
        variance = self.sds**2 + sigma**2
        distance = ((flat[:, None] - means[None]) ** 2).sum(2)
        log = self.weights.log() - 0.5 * distance / variance - 0.5 * flat.shape[1] * variance.log()
        share = log.softmax(1)
        posterior = (self.sds**2 / variance)[..., None] * flat[:, None]
        posterior = posterior + (sigma**2 / variance)[..., None] * means[None]
        return (share[..., None] * posterior).sum(1).reshape(x.shape)


class IdealDenoiser(EveryLevel):
    """D of the empirical distribution of a finite data set: a softmax-weighted mean of its images.

    images: [n, C, H, W], any dtype, kept as they are. They are taken ``chunk`` at a time in float64, with a running
    maximum, so that 50,000 images of 3 x 32 x 32 need one copy in their own dtype and a few MB more.
    """

    def __init__(self, images: torch.Tensor, chunk: int = 1024) -> None:
        if images.ndim != 4 or len(images) == 0 or chunk < 1:
            raise InputError(
                f"images={tuple(images.shape)}, chunk={chunk} is not allowed: [n >= 1, C, H, W], chunk >= 1"
            )
        self.images, self.chunk = images, chunk

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """E[y | x] at noise levels sigma > 0 ([B] or a scalar): float64, like x [B, C, H, W]."""
        flat = x.to(torch.float64).flatten(1)
        scale = (0.5 / sigma.to(flat) ** 2).reshape(-1, 1).expand(len(flat), 1)
        top = torch.full_like(scale, -torch.inf)
        mass, total = torch.zeros_like(scale), torch.zeros_like(flat)
        for first in range(0, len(self.images), self.chunk):
            part = self.images[first : first + self.chunk].to(flat).flatten(1)
            log = -(torch.cdist(flat, part, compute_mode="donot_use_mm_for_euclid_dist") ** 2) * scale
            higher = torch.maximum(top, log.max(1, keepdim=True).values)
            weight, decay = (log - higher).exp(), (top - higher).exp()
            mass = mass * decay + weight.sum(1, keepdim=True)
            total = total * decay + weight @ part
            top = higher
        return (total / mass).reshape(x.shape)
