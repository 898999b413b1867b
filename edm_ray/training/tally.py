"""Numbers of a tick, added up on the device and read once: reading each step would make the host wait for it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

SIGMA_EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise levels that part the bins of the per-sigma loss."""


class Tally:
    """Sums over the steps since the last tick, of this rank."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.edges = torch.tensor(SIGMA_EDGES, device=device)
        self.reset()

    def reset(self) -> None:
        bins = len(SIGMA_EDGES) + 1
        self.losses = torch.zeros(bins, dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(bins, dtype=torch.float64, device=self.device)
        self.norm = torch.zeros((), dtype=torch.float64, device=self.device)
        self.nonfinite = torch.zeros((), dtype=torch.float64, device=self.device)
        self.steps = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: all zero at a tick, where checkpoints of several workers are made."""
        steps = torch.tensor(self.steps, dtype=torch.int64)
        sums = {"losses": self.losses, "counts": self.counts, "norm": self.norm, "nonfinite": self.nonfinite}
        return {**sums, "steps": steps}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        for name in ("losses", "counts", "norm", "nonfinite"):
            setattr(self, name, tensors[name].to(self.device))
        self.steps = int(tensors["steps"])

    def add_losses(self, losses: torch.Tensor, sigmas: torch.Tensor) -> None:
        """Per-image losses [B] at their noise levels [B]. Those that are not finite stay out of the means."""
        bins = torch.bucketize(sigmas.detach(), self.edges)
        losses = losses.detach().double()
        finite = torch.isfinite(losses)
        self.losses.index_add_(0, bins, torch.where(finite, losses, 0.0))
        self.counts.index_add_(0, bins, finite.double())

    def add_step(self, norm: torch.Tensor, nonfinite: torch.Tensor) -> None:
        self.norm += norm
        self.nonfinite += nonfinite
        self.steps += 1

    def read(self, world_size: int) -> dict[str, Any]:
        """Means over all workers' images and over the steps, as host numbers; then everything starts at zero again.

        ``nonfinite`` of ``steps`` steps had gradients that were not finite; ``loss`` is None when no image's was.
        """
        shared = torch.cat([self.losses, self.counts])
        if world_size > 1:
            dist.all_reduce(shared)
        losses, counts = shared.reshape(2, -1).tolist()
        bins = [loss / count if count else None for loss, count in zip(losses, counts, strict=True)]
        result = {
            "loss": math.fsum(losses) / total if (total := math.fsum(counts)) else None,
            "loss_by_sigma": bins,
            "grad_norm": float(self.norm) / self.steps,
            "nonfinite": round(float(self.nonfinite)),
            "steps": self.steps,
        }
        self.reset()
        return result
