"""A small grid of fixed seeds from the average, drawn by rank 0 between two steps where a snapshot is due.

The other workers wait for it in their next step. So a drawing is given up as soon as it is seen to take more than SHARE
of the time since the last one, or MOST_SECONDS, far below the time-outs of collectives.
Nothing of it reaches the training: noise is counter-based, and the average is only read.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from edm_ray.config.codec import Codec
from edm_ray.config.network import NetworkConfig
from edm_ray.diffusion.preconditioning import Preconditioned
from edm_ray.diffusion.samplers import Heun
from edm_ray.evaluation.grids import rows_by_class, save_grid
from edm_ray.generation.generate import generate, labels_of
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.training.run import grid_uri

SAMPLER = Heun(num_steps=18)
LABELS = "balanced"
"""One class per row."""
COLUMNS, SMALL_ROWS, LARGE_ROWS, SMALL = 10, 5, 2, 3 * 64 * 64
"""50 images of up to 3 x 64 x 64 numbers; of larger ones 20."""
SHARE, MOST_SECONDS = 0.05, 60.0


class TooSlow(Exception):
    """A drawing would take too long."""


class GridDrawer:
    """Draws RUN/snapshots/NIMG/grid.png."""

    def __init__(
        self,
        run_uri: str,
        network: NetworkConfig,
        codec: Codec,
        empty_classes: Sequence[int] = (),
        class_names: Sequence[str] = (),
    ) -> None:
        self.run_uri, self.network, self.codec, self.empty_classes = run_uri, network, codec, empty_classes
        self.class_names = class_names
        self.last = time.monotonic()

    def draw(self, average: Preconditioned, images_seen: int) -> dict[str, Any]:
        """For the row of metrics: grid_s, what it took, and grid_skipped, why there is none. Never raises: training
        continues without a grid."""
        began, skipped = time.monotonic(), None
        budget = min(SHARE * (began - self.last), MOST_SECONDS)
        try:
            self._draw(average, images_seen, budget)
        except TooSlow as error:
            skipped = str(error)
        except Exception as error:
            skipped = f"{type(error).__name__}: {error}"
        self.last = time.monotonic()
        seconds = round(self.last - began, 3)
        return {"grid_s": seconds} if skipped is None else {"grid_s": seconds, "grid_skipped": skipped}

    def _draw(self, average: Preconditioned, images_seen: int, budget: float) -> None:
        denoiser = ModelDenoiser(average, self.network, self.codec, empty_classes=self.empty_classes)
        sampler = SAMPLER.effective(denoiser)
        count = COLUMNS * (SMALL_ROWS if math.prod(denoiser.shape) <= SMALL else LARGE_ROWS)
        with _time_limit(average, sampler.nfe, budget):
            pictures = generate(denoiser, torch.arange(count), sampler, LABELS, micro_batch=count).numpy()
        about = {
            "images seen": str(images_seen),
            "settings": str(sampler),
            "labels": LABELS,
            "seeds": f"0..{count - 1}",
        }
        scale = max(1, 64 // pictures.shape[-1])
        names: list[str] = []
        if denoiser.label_dim and len(self.class_names) == denoiser.label_dim:
            labels = labels_of(torch.arange(count), denoiser.label_dim, LABELS, self.empty_classes)
            pictures, names = rows_by_class(pictures, labels.numpy(), COLUMNS, self.class_names)
        save_grid(grid_uri(self.run_uri, images_seen), pictures, COLUMNS, about, scale, gap=6, names=names)


@contextlib.contextmanager
def _time_limit(denoiser: torch.nn.Module, evaluations: int, seconds: float) -> Iterator[None]:
    """Within it, raises TooSlow at the first evaluation of ``denoiser`` at which all of them together are seen to take
    longer than this. The first one, which may compile and choose kernels, is not taken for the rest."""
    began, calls = time.monotonic(), 0
    after_first = began

    def look(module: torch.nn.Module, arguments: object) -> None:
        nonlocal calls, after_first
        calls += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        if calls == 2:
            after_first = now
        elif calls > 2:
            expected = now - began + (now - after_first) / (calls - 2) * (evaluations - calls + 1)
            if expected > seconds:
                raise TooSlow(
                    f"would take {expected:.3g} s; {seconds:.3g} s are allowed, {SHARE:.0%} of the time before it"
                )

    handle = denoiser.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
