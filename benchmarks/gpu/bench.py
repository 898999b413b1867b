"""Where the parts of the benchmark run, how they time, and where their rows go."""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.shape import DataShape
from edm_ray.config.training import TrainingConfig

SHAPE = DataShape(resolution=32, channels=3, num_classes=10)


class Bench:
    """toy: sizes at which a CPU shows in seconds that the script works; its numbers mean nothing."""

    def __init__(self, out: Path, device: str, toy: bool, minutes: float) -> None:
        self.out, self.device, self.toy = out, torch.device(device), toy
        self.ends = time.monotonic() + 60 * minutes
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.ceilings: dict[str, float] = {}
        """Of this card, measured in this run: FLOP/s by precision, bytes/s as "copy"."""
        out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return self.ends - time.monotonic()

    def row(self, table: str, **values: Any) -> None:
        """Print a row and write all rows again."""
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
        print(f"  {table}: " + ", ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
        self.rows.setdefault(table, []).append(values)
        (self.out / "rows.json").write_text(json.dumps({"about": self.about(), "rows": self.rows}, indent=1) + "\n")

    def attempt(self, what: str, work: Callable[[], object]) -> None:
        """What fails is a row; what comes after it is worth its minutes."""
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            self.row("failed", what=what, error=f"{type(error).__name__}: {error}"[:300])

    def about(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "card": torch.cuda.get_device_name() if cuda else "none",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
            "toy": self.toy,
        }

    def time(self, work: Callable[[], object], rounds: int = 7, least_s: float = 0.25) -> list[float]:
        """Seconds a call, ``rounds`` values; each of as many calls as take ``least_s``. Warmed up before."""
        rounds, least_s = (2, 0.0) if self.toy else (rounds, least_s)
        work()
        if (one := self._span(work, 1)) > 1:
            rounds = min(rounds, 2)
        else:
            work()
            one = self._span(work, 1)
        calls = max(1, min(50, int(least_s / max(one, 1e-6))))
        return [self._span(work, calls) / calls for _ in range(rounds)]

    def _span(self, work: Callable[[], object], calls: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def floor_s(self, flops: float, precision: str) -> float:
        """The least time that so many operations take at the measured rate of this precision."""
        return flops / self.ceilings[precision]

    @contextmanager
    def peak(self) -> Iterator[Callable[[], float]]:
        """GiB allocated at most since then, by a function; nothing on a CPU."""
        if self.device.type != "cuda":
            yield lambda: 0.0
            return
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        yield lambda: (torch.cuda.max_memory_allocated() - base) / 2**30

    def config(self, *settings: str) -> TrainingConfig:
        """CIFAR-10's recipe, DDPM++ of 55.7 million parameters; a fraction of it at toy size."""
        toy = ["denoiser.network.model_channels=16", "denoiser.network.num_blocks=1"] if self.toy else []
        return configure(preset("cifar10-cond-vp-f", SHAPE), None, [*toy, *settings])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
