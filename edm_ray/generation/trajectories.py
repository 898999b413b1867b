"""Trajectories of a model as artefacts: blocks of inner products, made by the pool that samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_ray.diffusion.analysis.trajectories import Trajectories, inner_products
from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.samplers.levels import edm_levels
from edm_ray.generation.generate import labels_of, network_precision
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.seeding import image_noise
from edm_ray.storage import artifacts
from edm_ray.storage.artifacts import plain

NUM_IMAGES = 128
NUM_LEVELS = 32
FIRST_SEED = 1 << 29
"""Seeds that no chunk of a search has."""
PIXELS = 1 << 20
"""Of a block's images together: bounds its memory (100 MiB)."""
CODE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrajectoryBlock:
    """Of the images with seeds [first, first + size)."""

    kind = "trajectories"
    model: str
    """Hash of the model directory's content."""
    labels: str
    device: str
    levels: tuple[float, ...]
    first: int
    size: int

    @property
    def identity(self) -> dict[str, Any]:
        facts = {"model": self.model, "labels": self.labels, "device": self.device, "levels": self.levels}
        seeds = {"first": self.first, "size": self.size}
        return dict(plain({**facts, **seeds, "code": CODE_VERSION, "torch": torch.__version__}))

    def __str__(self) -> str:
        return f"trajectories of seeds {self.first}..{self.first + self.size - 1}"


def blocks_of(model: str, labels: str, device: str, shape: Sequence[int], bounds: tuple[float, float]) -> list[Any]:
    """Blocks of ``NUM_IMAGES`` images [C, H, W] from the highest to the lowest noise level (``bounds``: low, high)."""
    levels = tuple(edm_levels(*bounds, NUM_LEVELS, 7.0))
    size = max(1, min(32, PIXELS // math.prod(shape)))
    return [
        TrajectoryBlock(
            model=model,
            labels=labels,
            device=device,
            levels=levels,
            first=FIRST_SEED + done,
            size=min(size, NUM_IMAGES - done),
        )
        for done in range(0, NUM_IMAGES, size)
    ]


def make_block(denoiser: ModelDenoiser, block: TrajectoryBlock) -> np.ndarray:
    """float64 [2K, 2K], sums over images and pixels."""
    seeds = torch.arange(block.first, block.first + block.size, device=denoiser.device)
    labels = None
    if denoiser.label_dim:
        classes = labels_of(seeds, denoiser.label_dim, block.labels, denoiser.empty_classes)
        labels = one_hot_labels(classes, denoiser.label_dim)
    with torch.inference_mode(), network_precision("fp32", denoiser.device):
        latents = image_noise(seeds, "latents", denoiser.shape)(0)
        found = inner_products(AtLevel(denoiser, labels), latents, block.levels)
    made: np.ndarray = found.cpu().numpy()
    return made


def read_trajectories(store: str, blocks: Sequence[TrajectoryBlock], pixels: int) -> Trajectories:
    """Of all blocks together. pixels: of an image, channels included."""
    total = sum(artifacts.read(store, block).arrays["products"] for block in blocks)
    images = sum(block.size for block in blocks)
    return Trajectories(blocks[0].levels, np.asarray(total, dtype=np.float64) / (images * pixels))
