"""What is asked of a run from outside, between two steps: a checkpoint at once (a machine will be taken away), or a
checkpoint and the end (SIGTERM). Each worker may hear of it at another moment; all act on it after the same step.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from edm_ray.execution import activity


class Signal(enum.IntEnum):
    """The stronger one wins."""

    NONE = 0
    SAVE = 1
    """A checkpoint now, and at every tick while the signal lasts."""
    STOP = 2
    """A checkpoint now, and the end; the same command resumes from it."""


class Loop:
    """Whether a training loop runs, and how far it is, as whoever started it knows."""

    def __init__(self, silence_s: float = math.inf) -> None:
        """silence_s: a loop that gave no sign for so long does not run."""
        self.silence_s, self.heard_at = silence_s, -math.inf

    def on_step(self, images_seen: int, total: int) -> None:
        self.heard_at = time.monotonic()
        activity.count(images_seen, total, "images")

    def is_running(self) -> bool:
        return self.heard_at > -math.inf and time.monotonic() - self.heard_at <= self.silence_s


def no_signal() -> Signal:
    return Signal.NONE


class Signals:
    """The strongest signal that any worker has, known to all of them after the same step.

    Each step starts the workers' exchange of one number and takes the answer of the step before: nobody waits for it,
    and a signal is acted on one step late. It has a group of its own, on the hosts: a GPU would have to be waited for.
    """

    def __init__(self, ask: Callable[[], Signal], world_size: int) -> None:
        self.ask = ask
        self.group = dist.new_group(backend="gloo") if world_size > 1 else None
        self.under_way: tuple[Any, torch.Tensor] | None = None

    def after_step(self) -> Signal:
        """Every worker calls this after every step, and gets the same."""
        own = self.ask()
        if self.group is None:
            return own
        agreed = self._take()
        number = torch.tensor([int(own)])
        self.under_way = (dist.all_reduce(number, dist.ReduceOp.MAX, group=self.group, async_op=True), number)
        return agreed

    def _take(self) -> Signal:
        if self.under_way is None:
            return Signal.NONE
        (work, number), self.under_way = self.under_way, None
        work.wait()
        return Signal(int(number))

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """A host tensor of each worker, by rank."""
        if self.group is None:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, tensor, group=self.group)
        return parts

    def close(self) -> None:
        """After the last step, when all workers have come to it."""
        if self.group is not None:
            self._take()
            dist.destroy_process_group(self.group)
