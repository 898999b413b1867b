"""Images of a few samplers on the same seeds, and their features: the populations that are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.seeding import normal, stream_key
from research.error_bars.influence import Target
from research.leaderboard.judge import Judged, demo_model, images_of, landscape_model
from research.race.landscape import SPECS, load_data

IMAGES = 200_000
DEMO_IMAGES = 20_000
BATCH = 1000
FIRST, CLOSE, FAR = "first", "close", "far"
"""Whose FID is asked for, one that is nearly the same sampler, and another one."""
SAMPLERS: dict[str, Sampler] = {
    FIRST: sampler(num_steps=8, s_churn=1.6, s_noise=0.8),
    CLOSE: sampler(num_steps=8, s_churn=1.6, s_noise=0.82),
    FAR: sampler(num_steps=8),
}
OF_DEMO: dict[str, Sampler] = {
    FIRST: sampler(solver="dpmpp_2m", num_steps=8, sigma_min=0.02),
    CLOSE: sampler(solver="dpmpp_2m", num_steps=8, sigma_min=0.018),
    FAR: sampler(solver="ipndm", num_steps=8),
}
MANY = 256
"""Features of the wide case."""


@dataclass(frozen=True)
class Population:
    """Features [images, d] of each sampler, by one extractor, and what they are compared with."""

    about: str
    features: dict[str, np.ndarray]
    target: Target


def landscape(model: str, cache: Path) -> Population:
    """A landscape's three samplers, by its own 64 features."""
    judged = landscape_model(model, cache)
    _, _, greys = load_data(SPECS[model].data)
    features = {
        name: _extracted(judged, _images(judged, settings, name, cache, greys), greys)
        for name, settings in SAMPLERS.items()
    }
    about = f"{judged.about}; 64 features, {IMAGES:,} images"
    return Population(about, features, Target.of(judged.mean, judged.covariance))


def real(cache: Path) -> Population:
    """The real digits against themselves: their FID is 0 but for rounding, so nothing but bias is seen."""
    judged = landscape_model("digits", cache)
    images, _, _ = load_data("digits")
    with torch.inference_mode():
        features = judged.extract(images)
    about = f"{len(images):,} real digits against themselves; 64 features"
    return Population(about, {FIRST: features.astype(np.float32)}, Target.of(judged.mean, judged.covariance))


def wide(cache: Path) -> Population:
    """The digits' two close samplers by 256 random rectified features, more than a small sample spans."""
    judged = landscape_model("digits", cache)
    images, _, greys = load_data("digits")
    drawn = normal(stream_key("wide features"), torch.arange(MANY), images[0].numel() + 1).numpy()

    def extract(levels: np.ndarray) -> np.ndarray:
        x = levels.astype(np.float32) / ((greys - 1) / 2) - 1
        weight, bias = drawn[:, :-1] * 3 / np.sqrt(images[0].numel()), drawn[:, -1]
        return np.maximum(x @ weight.T.astype(np.float32) + bias.astype(np.float32), 0)

    of_real = extract(((images.flatten(1) + 1) * (greys - 1) / 2).round().numpy()).astype(np.float64)
    features = {name: extract(_images(judged, SAMPLERS[name], name, cache, greys)) for name in (FIRST, CLOSE)}
    about = f"the digits' network; {MANY} random features, {IMAGES:,} images"
    return Population(about, features, Target.of(of_real.mean(axis=0), np.cov(of_real.T)))


def demo(cache: Path, folder: str) -> Population:
    """The demo's U-Net, with its own features."""
    judged = demo_model(folder)
    features = {}
    for name, settings in OF_DEMO.items():
        path = cache / f"pool-demo-{name}-{judged.key}.npy"
        if not path.exists():
            made = []
            for first in range(0, DEMO_IMAGES, BATCH):
                with torch.inference_mode():
                    made.append(judged.extract(images_of(judged, settings, torch.arange(first, first + BATCH))))
            np.save(path, np.concatenate(made).astype(np.float32))
        features[name] = np.load(path)
    about = f"the demo's class-conditional U-Net; 64 features, {DEMO_IMAGES:,} images"
    return Population(about, features, Target.of(judged.mean, judged.covariance))


def _images(judged: Judged, settings: Sampler, name: str, cache: Path, greys: int) -> np.ndarray:
    """Grey levels uint8 [IMAGES, pixels], kept."""
    path = cache / f"pool-{judged.name}-{name}-{judged.key}.npy"
    if not path.exists():
        made = []
        for first in range(0, IMAGES, BATCH):
            with torch.inference_mode():
                x = images_of(judged, settings, torch.arange(first, first + BATCH))
            made.append(x.add(1).mul((greys - 1) / 2).round_().clamp_(0, greys - 1).to(torch.uint8).flatten(1).numpy())
        np.save(path, np.concatenate(made))
    stored: np.ndarray = np.load(path)
    return stored


def _extracted(judged: Judged, levels: np.ndarray, greys: int) -> np.ndarray:
    side = judged.denoiser.model.img_resolution
    parts = []
    with torch.inference_mode():
        for first in range(0, len(levels), 10 * BATCH):
            x = torch.from_numpy(levels[first : first + 10 * BATCH]).float().div_((greys - 1) / 2).sub_(1)
            parts.append(judged.extract(x.reshape(-1, 1, side, side)).astype(np.float32))
    return np.concatenate(parts)
