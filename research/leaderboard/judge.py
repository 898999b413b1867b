"""FIDs of samplers on four small models, from images that every sampler makes of the same seeds.

Three are the landscapes of `research.race` (residual MLPs), the fourth is the demo's own U-Net. A block is the moments
of 1,000 images in ten groups (seed mod 10), kept on disk under what decides it: so a run that was stopped resumes, and
no sampler is sampled twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_ray.diffusion.analysis.trajectories import Trajectories, inner_products
from edm_ray.diffusion.denoiser import AtLevel, as_denoiser
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.preconditioning import EDM
from edm_ray.diffusion.samplers import Sampler, sample
from edm_ray.diffusion.samplers.levels import edm_levels
from edm_ray.evaluation.chunks import POOL_START
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.generate import labels_of
from edm_ray.generation.trajectories import FIRST_SEED, NUM_IMAGES, NUM_LEVELS
from edm_ray.models.directory import open_model
from edm_ray.search.trials import Evaluation, Pool
from edm_ray.seeding import image_noise
from research.race.landscape import SPECS, Net, load_data, train_denoiser, train_features
from research.race.packed import Packed

GROUPS = 10
BLOCK = 1000
"""Images of one block of moments."""
BATCH = 500
UNET = "digits U-Net"
"""The demo's model; needs its folder (`--demo`)."""
Extract = Callable[[torch.Tensor], np.ndarray]
"""Images float [B, 1, S, S] in [-1, 1] -> features float64 [B, d]."""


@dataclass(frozen=True)
class Judged:
    """A model and what looks at its images."""

    name: str
    about: str
    denoiser: Any
    labels: Callable[[torch.Tensor], torch.Tensor | None]
    """Seeds -> class labels, one-hot."""
    extract: Extract
    mean: np.ndarray
    covariance: np.ndarray
    key: str
    """Names the weights of both."""


def landscape_model(name: str, cache: Path) -> Judged:
    """A landscape's network, trained now (a minute) or read from the cache."""
    spec = SPECS[name]
    images, labels, greys = load_data(spec.data)
    path = cache / spec.name / "model.pt"
    denoiser = EDM(Net(images.shape[-1], spec.width, spec.depth), float(images.std())).eval().requires_grad_(False)
    if path.exists():
        denoiser.load_state_dict(torch.load(path, weights_only=True))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        denoiser = train_denoiser(spec, images)
        torch.save(denoiser.state_dict(), path)
    features, mean, covariance = train_features(spec, images, labels)

    def extract(x: torch.Tensor) -> np.ndarray:
        half = (greys - 1) / 2
        rounded = x.add(1).mul(half).round_().clamp_(0, greys - 1).div_(half).sub_(1)
        return features(rounded.flatten(1)).double().numpy()

    digest = hashlib.sha256(mean.tobytes() + covariance.tobytes())
    for value in denoiser.state_dict().values():
        digest.update(value.numpy().tobytes())
    return Judged(name, spec.about, denoiser, lambda seeds: None, extract, mean, covariance, digest.hexdigest()[:16])


def demo_model(demo: str) -> Judged:
    """The model and the reference that `edm-ray demo` made in this folder."""
    model, (reference, spec) = open_model(f"{demo}/run/model"), open_reference(f"{demo}/reference")
    assert isinstance(reference.moments, Moments)
    denoiser, extractor = model.denoiser(), spec.load("cpu")
    scale = 2.0**-reference.moments.scale_bits

    def labels(seeds: torch.Tensor) -> torch.Tensor:
        return one_hot_labels(labels_of(seeds, denoiser.label_dim, "random"), denoiser.label_dim)

    def extract(x: torch.Tensor) -> np.ndarray:
        pixels = x.add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
        return extractor.extract(pixels).astype(np.float64) * scale

    about = "the demo's class-conditional U-Net on 8x8 digits, its own features"
    key = f"{model.hash[:16]}-{reference.moments.hash[:16]}"
    mean, covariance = reference.moments.mean, reference.moments.covariance
    return Judged(UNET, about, denoiser, labels, extract, mean, covariance, key)


class Judge:
    """Estimates FIDs of one model's samplers, each block of images once."""

    def __init__(self, judged: Judged, cache: Path) -> None:
        self.judged = judged
        self.kept = cache / "blocks" / judged.key
        self.kept.mkdir(parents=True, exist_ok=True)
        self.sampled = 0
        """Images made by this object."""

    def __call__(self, asked: Evaluation, chunk_size: int) -> FidEstimate:
        """What a sweep asks for."""
        return self.estimate(asked.settings, asked.seeds, asked.chunks * chunk_size)

    def estimate(self, settings: Sampler, pool: Pool, images: int) -> FidEstimate:
        """On the first images of a pool of seeds, with the influences of the blocks' groups."""
        assert images % BLOCK == 0, images
        blocks = [self.block(settings, pool, number) for number in range(images // BLOCK)]
        counts = np.full(len(blocks) * GROUPS, BLOCK // GROUPS)
        return self._sums.estimate(np.concatenate(blocks), counts, self.judged.name, self.judged.key)

    def block(self, settings: Sampler, pool: Pool, number: int) -> np.ndarray:
        """[groups, d + d (d + 1) / 2]: sums of features and of their products, float64."""
        effective = settings.effective(self.judged.denoiser)
        named = json.dumps([effective.to_dict(), pool, number, torch.__version__], sort_keys=True)
        path = self.kept / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.npy"
        if path.exists():
            stored: np.ndarray = np.load(path)
            return stored.astype(np.float64)
        made = self._make(effective, POOL_START[pool] + number * BLOCK)
        part = path.with_suffix(".part.npy")
        np.save(part, made)
        part.rename(path)
        return made

    def _make(self, settings: Sampler, first: int) -> np.ndarray:
        self.sampled += BLOCK
        found = []
        for start in range(first, first + BLOCK, BATCH):
            seeds = torch.arange(start, start + BATCH)
            with torch.inference_mode():
                found.append(self.judged.extract(images_of(self.judged, settings, seeds)))
        features = np.concatenate(found)
        return np.stack([self._sums.pack(features[group::GROUPS]) for group in range(GROUPS)])

    @cached_property
    def _sums(self) -> Packed:
        return Packed(self.judged.mean, self.judged.covariance)


def trajectories_of(judged: Judged) -> Trajectories:
    """As a sweep's stage 0 has them."""
    shape = shape_of(judged)
    total = np.zeros((2 * NUM_LEVELS,) * 2)
    levels = edm_levels(0.002, 80.0, NUM_LEVELS, 7.0)
    for first in range(FIRST_SEED, FIRST_SEED + NUM_IMAGES, 32):
        seeds = torch.arange(first, first + 32)
        with torch.inference_mode():
            D = AtLevel(as_denoiser(judged.denoiser), judged.labels(seeds))
            total += inner_products(D, image_noise(seeds, "latents", shape)(0), levels).numpy()
    return Trajectories(tuple(levels), total / (NUM_IMAGES * math.prod(shape)))


def shape_of(judged: Judged) -> tuple[int, int, int]:
    side = judged.denoiser.model.img_resolution if hasattr(judged.denoiser, "model") else judged.denoiser.shape[-1]
    return (1, side, side)


def images_of(judged: Judged, settings: Sampler, seeds: torch.Tensor) -> torch.Tensor:
    """float32 [B, 1, S, S]; each image a function of its seed, but for the rounding of other batch sizes."""
    shape = shape_of(judged)
    latents, noise = image_noise(seeds, "latents", shape)(0), image_noise(seeds, "churn", shape)
    return sample(judged.denoiser, latents, settings, judged.labels(seeds), noise).float()


def judges(names: list[str], cache: Path, demo: str | None) -> list[Judge]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    made = []
    for name in names:
        judged = demo_model(demo) if name == UNET and demo is not None else landscape_model(name, cache)
        made.append(Judge(judged, cache))
    return made
