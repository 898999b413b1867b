"""The clock of a run is images seen: when a tick, a checkpoint or a snapshot is due; and how fast it went."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

import torch

from edm_ray.config.training import TrainingConfig

if TYPE_CHECKING:
    from edm_ray.training.engine import Trainer


def crossed(before: int, after: int, interval_kimg: float) -> bool:
    """Whether a multiple of the interval lies in (before, after]."""
    interval = max(1, round(interval_kimg * 1000))
    return after // interval > before // interval


def last_tick(images_seen: int, config: TrainingConfig) -> int:
    """The last tick at or before this moment: a run that was told to stop goes on in the middle of one."""
    interval = max(1, round(config.tick_kimg * 1000))
    return -(-(images_seen // interval * interval) // config.batch_size) * config.batch_size


class Stopwatch:
    """How fast it went since the last tick, and what it waited for."""

    def __init__(self, images_seen: int) -> None:
        self.images_seen, self.moment, self.stall_s = images_seen, time.monotonic(), 0.0

    def read(self, trainer: Trainer) -> dict[str, float]:
        """images_per_s, data_wait (share of the time), checkpoint_stall_s, memory_mib; then it starts again."""
        now = time.monotonic()
        elapsed = max(now - self.moment, 1e-9)
        memory = (
            torch.cuda.max_memory_allocated(trainer.device)
            if trainer.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        row = {
            "images_per_s": (trainer.images_seen - self.images_seen) / elapsed,
            "data_wait": trainer.data_wait_s / elapsed,
            "checkpoint_stall_s": self.stall_s,
            "memory_mib": memory / 2**20,
        }
        self.images_seen, self.moment = trainer.images_seen, now
        trainer.data_wait_s = self.stall_s = 0.0
        return row
