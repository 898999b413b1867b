"""Numbers of a run: added up on the device between ticks and read there once (reading each step would make the host
wait for it), how fast it went, and the rows of ``metrics.jsonl``."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris
from edm_ray.storage.s3 import impatient
from edm_ray.storage.versioned import from_text, to_text

logger = logging.getLogger(__name__)
DAMAGED = "delete that file, or give --fresh to delete the run and start over"
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


class Stopwatch:
    """How fast it went since the last tick, and what it waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start(0)

    def start(self, images_seen: int) -> None:
        self.images_seen, self.moment = images_seen, time.monotonic()
        self.data_wait_s = self.stall_s = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.data_wait_s += time.monotonic() - began

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.stall_s += time.monotonic() - began

    def read(self, images_seen: int) -> dict[str, float]:
        """images_per_s, data_wait (share of the time), checkpoint_stall_s, memory_mib; then it starts again."""
        elapsed = max(time.monotonic() - self.moment, 1e-9)
        memory = (
            torch.cuda.max_memory_allocated(self.device)
            if self.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        row = {
            "images_per_s": (images_seen - self.images_seen) / elapsed,
            "data_wait": self.data_wait_s / elapsed,
            "checkpoint_stall_s": self.stall_s,
            "memory_mib": memory / 2**20,
        }
        self.start(images_seen)
        return row


def read_metrics(run_uri: str, up_to: int | None = None) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``, ascending in nimg, without the format version that each carries; ``up_to`` leaves out
    what a resumed run will write again."""
    path = uris.join(run_uri, "metrics.jsonl")
    if not uris.exists(path):
        return []
    rows = [from_text(line, path, DAMAGED) for line in uris.read_bytes(path).splitlines()]
    if not all(isinstance(row.get("nimg"), int) for row in rows):
        raise IntegrityError(f"{path}: damaged, a row without nimg; {DAMAGED}")
    return [row for row in rows if up_to is None or row["nimg"] <= up_to]


def write_metrics(run_uri: str, rows: list[dict[str, Any]]) -> None:
    """Each row carries the format version."""
    text = "".join(to_text(row) + "\n" for row in rows)
    uris.write_bytes(uris.join(run_uri, "metrics.jsonl"), text.encode())


class MetricsLog:
    """Rank 0's rows. The file is rewritten whole, so it is never half a line and works on object stores.

    Each row carries the run's identity. Raises InputError where rows of another run are there. While storage is away
    rows wait in memory; a checkpoint is written after them.
    """

    def __init__(self, run_uri: str, images_seen: int, run: str) -> None:
        self.behind = False
        """Whether rows wait to be written."""
        self.writing = threading.Lock()
        self.run_uri, self.run, self.rows = run_uri, run, read_metrics(run_uri, images_seen)
        if others := sorted({str(row.get("run")) for row in self.rows} - {run}):
            raise InputError(
                f"{uris.join(run_uri, 'metrics.jsonl')}: has rows of run {', '.join(others)}, this run is {run} "
                "(run.json); delete that file, or give --fresh to delete the run and start over"
            )

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append({**row, "run": self.run})
        was_behind, self.behind = self.behind, True
        if not self.writing.acquire(blocking=False):
            return  # a checkpoint's thread is at it
        try:
            with impatient():
                self._write()
        except OSError as error:
            if not was_behind:
                logger.warning("%s; rows of metrics wait until storage is back, and training continues", error)
        finally:
            self.writing.release()

    def flush(self) -> None:
        """Write what waits, as patiently as a checkpoint is written. Raises what storage raises."""
        with self.writing:
            while self.behind:
                self._write()

    def _write(self) -> None:
        self.behind = False
        try:
            write_metrics(self.run_uri, list(self.rows))
        except BaseException:
            self.behind = True
            raise
