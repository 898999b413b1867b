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

    def sums(self) -> torch.Tensor:
        """For a checkpoint: this rank's losses and counts, then what is the same on all ranks. All zero at a tick."""
        alike = torch.stack([self.norm, self.nonfinite, torch.full_like(self.norm, self.steps)])
        return torch.cat([self.losses, self.counts, alike]).cpu()

    def restore(self, sums: torch.Tensor, rank: int, world_size: int) -> None:
        """From the sums of all ranks [ranks, ...]; where there are other ranks now, rank 0 takes all of them."""
        if len(sums) == world_size:
            own = sums[rank]
        else:
            own = sums.sum(0) if rank == 0 else torch.zeros_like(sums[0])
        bins = len(self.losses)
        self.losses, self.counts = (own[first : first + bins].to(self.device) for first in (0, bins))
        norm, nonfinite, steps = sums[0, 2 * bins :]
        self.norm, self.nonfinite, self.steps = norm.to(self.device), nonfinite.to(self.device), int(steps)

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
