"""A small grid of fixed seeds from the average, drawn by rank 0 between two steps where a snapshot is due.

The other workers wait for it in their next step. So a drawing is given up as soon as it is seen to take more than SHARE
of the time since the last one, or MOST_SECONDS, far below the time-outs of collectives.
Nothing of it reaches the training: noise is counter-based, and the average is only read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from edm_ray.config.codec import Codec
from edm_ray.config.schema import NetworkConfig
from edm_ray.data.codec import to_pictures
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.samplers import SamplerSettings, sample
from edm_ray.errors import InputError
from edm_ray.evaluation.grids import save_grid
from edm_ray.seeding import image_noise
from edm_ray.training.run import grid_uri

SAMPLER = SamplerSettings(num_steps=18)
COLUMNS = 10
"""A row has one class, as the labels of `edm-ray generate` have."""
SMALL_ROWS, LARGE_ROWS, SMALL = 5, 2, 3 * 64 * 64
"""50 images of up to 3 x 64 x 64 numbers; of larger ones 20."""
SHARE, MOST_SECONDS = 0.05, 60.0


class TooSlow(Exception):
    """A drawing would take too long."""


class GridDrawer:
    """Draws RUN/snapshots/NIMG/grid.png."""

    def __init__(self, run_uri: str, network: NetworkConfig, codec: Codec) -> None:
        self.run_uri, self.network, self.codec = run_uri, network, codec
        self.last = time.monotonic()

    def draw(self, average: torch.nn.Module, images_seen: int) -> dict[str, Any]:
        """For the row of metrics: grid_s, what it took, and grid_skipped, why there is none. Never raises: training
        goes on without a grid."""
        began, skipped = time.monotonic(), None
        budget = min(SHARE * (began - self.last), MOST_SECONDS)
        try:
            sampler = SAMPLER.effective(average)
            with _time_limit(average, sampler.nfe, budget):
                pictures = self._pictures(average, sampler)
            about = {"images seen": str(images_seen), "settings": str(sampler), "seeds": f"0..{len(pictures) - 1}"}
            scale = max(1, 64 // pictures.shape[-1])
            save_grid(grid_uri(self.run_uri, images_seen), pictures.cpu().numpy(), COLUMNS, about, scale, gap=6)
        except TooSlow as error:
            skipped = str(error)
        except Exception as error:
            skipped = f"{type(error).__name__}: {error}"
        self.last = time.monotonic()
        seconds = round(self.last - began, 3)
        return {"grid_s": seconds} if skipped is None else {"grid_s": seconds, "grid_skipped": skipped}

    @torch.no_grad()
    def _pictures(self, average: torch.nn.Module, sampler: SamplerSettings) -> torch.Tensor:
        """uint8 [N, C, H, W], with the pixels of `edm-ray generate` (50 images are one of its micro-batches)."""
        network = self.network
        shape = (network.img_channels, network.img_resolution, network.img_resolution)
        small = network.img_channels * network.img_resolution**2 <= SMALL
        device = next(average.parameters()).device
        seeds = torch.arange(COLUMNS * (SMALL_ROWS if small else LARGE_ROWS), device=device)
        labels = one_hot_labels(seeds // COLUMNS % network.label_dim, network.label_dim) if network.label_dim else None
        images = sample(average, image_noise(seeds, "latents", shape)(0), sampler, class_labels=labels)
        if not bool(torch.isfinite(images).all()):
            raise InputError("samples are not finite")
        return to_pictures(images, self.codec)


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
                raise TooSlow(f"would take {expected:.3g} s; {seconds:.3g} s are allowed")

    handle = denoiser.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
