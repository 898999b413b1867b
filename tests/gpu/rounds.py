"""Steps on pictures that need no data set."""

from __future__ import annotations

import numpy as np
import torch

from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.shape import DataShape
from edm_ray.config.training import TrainingConfig
from edm_ray.training.device import Place
from edm_ray.training.state import TrainingState
from edm_ray.training.step import TrainingStep

COLOUR = DataShape(resolution=32, channels=3, num_classes=10)


class Pictures:
    """Stands in for a reader: row = position mod 512 of fixed random pixels, pinned as a reader's are."""

    skipped = None

    def __init__(self, shape: DataShape = COLOUR, count: int = 512) -> None:
        draw = torch.Generator().manual_seed(0)
        size = (count, shape.channels, shape.resolution, shape.resolution)
        self.pixels = torch.randint(256, size, dtype=torch.uint8, generator=draw)
        self.labels = torch.randint(max(shape.num_classes, 1), (count,), generator=draw)

    def at(self, positions: np.ndarray, seed: int):
        rows = torch.from_numpy(positions % len(self.pixels))
        found = self.pixels[rows], self.labels[rows]
        return tuple(each.pin_memory() for each in found) if torch.cuda.is_available() else found


def small(*settings: str) -> TrainingConfig:
    """The CIFAR-10 recipe with a small network: class labels, dropout and augmentation are on."""
    config = preset("cifar10-cond-vp-f", COLOUR)
    network = ["denoiser.network.model_channels=32", "denoiser.network.num_blocks=1", "optimizer.ramp_kimg=0.1"]
    return configure(config, None, [*network, "batch_size=32", *settings])


def step_of(config: TrainingConfig, device: str = "cuda") -> TrainingStep:
    state = TrainingState(config, torch.device(device))
    return TrainingStep(config, Place(device=device), state)


def take(step: TrainingStep, count: int, pictures: Pictures | None = None) -> list[torch.Tensor]:
    """Parameters and averages after so many steps, on the host."""
    pictures = pictures or Pictures()
    for _ in range(count):
        step.take(pictures)
    everything = [*step.state.denoiser.parameters(), *step.state.average.parameters()]
    return [each.detach().cpu().clone() for each in everything]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
