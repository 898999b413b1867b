"""Landscapes of samplers: feature moments of every sampler of a dense grid, on shared seeds, on disk.

A landscape is a small denoiser trained here in a minute (edm_ray's objective and preconditioning), a grid of 501
samplers and, for each of them, the moments of small units of images. All samplers see the same seeds. Samplers that
agree up to some step share their states up to there (a tree walk), which saves about two thirds of the work.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edm_ray.diffusion.objectives import EDM as EDMObjective
from edm_ray.diffusion.preconditioning import EDM
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.seeding import image_noise, normal, stream_key, uniform

UNIT = 200
"""Images of one unit of moments."""
BLOCK = 2000
"""Images of one file."""
DIM = 64
NUM_STEPS = 8


class Net(nn.Module):
    """F_theta: a residual MLP on flattened images. ``embed`` gives one row for each noise level."""

    label_dim = 0

    def __init__(self, side: int, width: int, depth: int) -> None:
        super().__init__()
        self.img_channels, self.img_resolution = 1, side
        self.frequencies = torch.linspace(0.3, 6.0, 16)
        self.level = nn.ModuleList(nn.Linear(32, width) for _ in range(depth))
        self.first = nn.Linear(side * side, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, side * side)

    def hidden(self, x: torch.Tensor, noise: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Flat images [B, side^2], times ``scale``, and c_noise [1] or [B] -> what the last layer sees [B, width]."""
        angle = noise[:, None] * self.frequencies
        wave = torch.cat([angle.cos(), angle.sin()], dim=1)
        h = torch.addmm(self.first.bias, x, self.first.weight.T, alpha=scale)
        for level, inner, outer in zip(self.level, self.inner, self.outer):
            h = h + outer(nn.functional.silu(inner(nn.functional.silu(h)) + level(wave)))
        return nn.functional.silu(h)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        return self.last(self.hidden(x.flatten(1), noise_labels)).reshape(x.shape)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one landscape is made of."""

    name: str
    about: str
    data: str
    width: int
    depth: int
    train_steps: int
    seed: int
    whiten: float
    """Power of the reference covariance taken out of the features: 1 whitens them, 0.5 half, 0 not at all."""
    churn: tuple[float, ...]
    """S_churn as shares of its cap."""
    s_tmin: tuple[float, ...]
    s_tmax: tuple[float, ...]
    s_noise: tuple[float, ...]

    def settings(self) -> list[Sampler]:
        """Deterministic sampling first, then the grid."""
        base = sampler(num_steps=NUM_STEPS)
        product = itertools.product(self.churn, self.s_tmin, self.s_tmax, self.s_noise)
        return [base] + [
            sampler(num_steps=NUM_STEPS, s_churn=share * base.churn_cap, s_tmin=low, s_tmax=high, s_noise=amount)
            for share, low, high, amount in product
        ]


WINDOWS = {"s_tmin": (0.0, 0.01, 0.1, 0.5), "s_tmax": (2.0, 8.0, 20.0, 50.0, 80.0)}
SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            name="digits",
            about="8x8 digits, MLP of 64 x 2, whitened features; `race` was tuned on it",
            data="digits",
            width=64,
            depth=2,
            train_steps=4000,
            seed=0,
            whiten=1.0,
            churn=(0.15, 0.3, 0.5, 0.75, 1.0),
            s_noise=(0.52, 0.58, 0.64, 0.70, 0.78),
            **WINDOWS,
        ),
        Spec(
            name="other-net",
            about="8x8 digits, another network (96 x 1, half of the training), other features, half whitened",
            data="digits",
            width=96,
            depth=1,
            train_steps=2000,
            seed=1,
            whiten=0.5,
            churn=(0.15, 0.3, 0.5, 0.75, 1.0),
            s_noise=(0.64, 0.70, 0.76, 0.82, 0.90),
            **WINDOWS,
        ),
        Spec(
            name="crops",
            about="16x16 crops of two photographs, MLP of 96 x 1, half whitened features",
            data="crops",
            width=96,
            depth=1,
            train_steps=4000,
            seed=2,
            whiten=0.5,
            churn=(0.15, 0.3, 0.5, 0.75, 1.0),
            s_noise=(0.78, 0.84, 0.90, 0.96, 1.0),
            **WINDOWS,
        ),
    )
}


def load_data(name: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Images [N, 1, S, S] in [-1, 1], labels for the feature network, and the number of grey levels."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return torch.from_numpy(digits.images).float()[:, None] / 8 - 1, torch.from_numpy(digits.target).long(), 17
    from sklearn.datasets import load_sample_images

    crops, labels = [], []
    for which, photo in enumerate(load_sample_images().images):
        grey = torch.from_numpy(photo.astype(np.float32).mean(axis=2)) / 127.5 - 1
        small = nn.functional.avg_pool2d(grey[None, None], 2)[0, 0]
        windows = small.unfold(0, 16, 3).unfold(1, 16, 3)
        rows, columns = windows.shape[:2]
        tile = (torch.arange(rows)[:, None] * 3 // rows) * 4 + torch.arange(columns)[None, :] * 4 // columns
        crops.append(windows.reshape(-1, 1, 16, 16))
        labels.append(tile.flatten() + 12 * which)
    return torch.cat(crops), torch.cat(labels), 256


def adam(parameters, loss_of: Callable[[int], torch.Tensor], steps: int, lr: float) -> Iterator[int]:
    """Adam with a cosine from ``lr`` to 0; yields after each step."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 100)
        optimizer.zero_grad(set_to_none=True)
        loss_of(step).backward()
        optimizer.step()
        yield step


def train_denoiser(spec: Spec, images: torch.Tensor) -> EDM:
    """EDM objective and preconditioning, batches of 512, average of the weights."""
    sigma_data = float(images.std())
    torch.manual_seed(spec.seed)
    denoiser = EDM(Net(images.shape[-1], spec.width, spec.depth), sigma_data)
    average = {name: value.clone() for name, value in denoiser.state_dict().items()}
    objective = EDMObjective(sigma_data=sigma_data)
    size = math.prod(images.shape[1:])

    def loss(step: int) -> torch.Tensor:
        where = torch.arange(step * 512, (step + 1) * 512)
        batch = images[(uniform(stream_key("rows", spec.seed), where, 1)[:, 0] * len(images)).long()]
        noise = normal(stream_key("noise", spec.seed), where, size).float().reshape(batch.shape)
        draw = normal(stream_key("sigma", spec.seed), where, 1)[:, 0].float()
        return objective.loss(denoiser, batch, draw, noise).mean()

    for _ in adam(denoiser.parameters(), loss, spec.train_steps, 3e-3):
        for name, value in denoiser.state_dict().items():
            average[name].lerp_(value, 0.005)
    denoiser.load_state_dict(average)
    return denoiser.eval().requires_grad_(False)


def train_features(
    spec: Spec, images: torch.Tensor, labels: torch.Tensor
) -> tuple[Callable[[torch.Tensor], torch.Tensor], np.ndarray, np.ndarray]:
    """A classifier's 64 penultimate features, (half) whitened: extractor of flat images, reference mean, covariance."""
    torch.manual_seed(100 + spec.seed)
    size = math.prod(images.shape[1:])
    first, second, head = nn.Linear(size, 64), nn.Linear(64, DIM), nn.Linear(DIM, int(labels.max()) + 1)
    parameters = [*first.parameters(), *second.parameters(), *head.parameters()]
    flat = images.flatten(1)

    def loss(step: int) -> torch.Tensor:
        rows = (
            uniform(stream_key("feature rows", spec.seed), torch.arange(128) + 128 * step, 1)[:, 0] * len(flat)
        ).long()
        return nn.functional.cross_entropy(head(second(first(flat[rows]).relu()).relu()), labels[rows])

    for _ in adam(parameters, loss, 1500, 2e-3):
        pass
    with torch.inference_mode():
        covariance = torch.from_numpy(np.cov(second(first(flat).relu()).double().numpy().T))
        values, vectors = torch.linalg.eigh(covariance)
        ridge = 0.02 * values.mean()
        mix = vectors @ torch.diag((values + ridge) ** (-spec.whiten / 2)) @ vectors.T
        mix = mix / mix.diagonal().mean() if spec.whiten < 1 else mix
        weight, bias = (mix @ second.weight.double()).float(), (mix @ second.bias.double()).float()

        def extract(x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(first(x).relu(), weight, bias)

        features = extract(flat).double().numpy()
    return extract, features.mean(axis=0), np.cov(features.T)


def walk(denoiser: EDM, settings: list[Sampler], seeds: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Algorithm 2 (Heun) for all settings on the same seeds: yields (index of setting, flat images [B, S^2]), float32.

    The settings differ in churn only, so a state is the same for all that have churned alike so far.
    """
    levels = [*settings[0].noise_levels(denoiser), 0.0]
    side = denoiser.model.img_resolution
    flat = (len(seeds), side * side)
    noise = image_noise(seeds, "churn", (1, side, side))
    noises = [noise(step).float().reshape(flat) for step in range(len(levels) - 1)]
    gammas = [[each.gamma(level) for level in levels[:-1]] for each in settings]

    ones = torch.ones(len(seeds), 1)

    def slope(x: torch.Tensor, level: float) -> torch.Tensor:
        """(x - D) / level = x (1 - skip) / level - F out / level, in one pass over the images."""
        skip, out, scale, label = denoiser.coefficients(torch.tensor(level).reshape(1, 1, 1, 1))
        hidden = torch.cat([denoiser.model.hidden(x, label.flatten(), float(scale)), ones], dim=1)
        last = denoiser.model.last
        weights = torch.cat([last.weight, last.bias[:, None]], dim=1).T
        return torch.addmm(x, hidden, weights, beta=(1 - float(skip)) / level, alpha=-float(out) / level)

    def descend(step: int, x: torch.Tensor, members: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        if step == len(levels) - 1:
            yield from ((index, x) for index in members)
            return
        alike: dict[tuple[float, float], list[int]] = {}
        for index in members:
            gamma = gammas[index][step]
            alike.setdefault((gamma, settings[index].s_noise if gamma else 1.0), []).append(index)
        for (gamma, amount), part in alike.items():
            high, low = levels[step] * (1 + gamma), levels[step + 1]
            y = x.add(noises[step], alpha=amount * math.sqrt(high**2 - levels[step] ** 2)) if gamma else x
            first = slope(y, high)
            ahead = y.add(first, alpha=low - high)
            if low > 0:
                ahead = y.add(first.add_(slope(ahead, low)), alpha=0.5 * (low - high))
            yield from descend(step + 1, ahead, part)

    start = image_noise(seeds, "latents", (1, side, side))(0).float().reshape(flat) * levels[0]
    yield from descend(0, start, list(range(len(settings))))


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Moments of units of images; packed holds [sum (64), lower triangle of the sum of outer products (2080)]."""

    spec: Spec
    settings: list[Sampler]
    packed: np.ndarray
    """float32 [settings, units, 64 + 2080]: sums in float64, kept in float32 (the FID changes by less than 1e-5)."""
    mean: np.ndarray
    covariance: np.ndarray
    folder: Path
    unit: int = UNIT
    """Images of one unit."""


TRIANGLE = np.tril_indices(DIM)


def build(spec: Spec, folder: Path, num_images: int, unit: int = UNIT) -> Landscape:
    """The landscape from its cache, or computed now: a block of 2,000 seeds is one file, so a stopped run resumes.
    The folder is of one size of units."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    settings = spec.settings()
    here = folder / spec.name
    here.mkdir(parents=True, exist_ok=True)
    images, labels, greys = load_data(spec.data)
    model = here / "model.pt"
    denoiser = EDM(Net(images.shape[-1], spec.width, spec.depth), float(images.std())).eval().requires_grad_(False)
    if model.exists():
        denoiser.load_state_dict(torch.load(model, weights_only=True))
    else:
        denoiser = train_denoiser(spec, images)
        torch.save(denoiser.state_dict(), model)
    extract, mean, covariance = train_features(spec, images, labels)
    blocks = [here / f"block-{first // BLOCK:04d}.npy" for first in range(0, num_images, BLOCK)]
    began, done = time.monotonic(), 0
    for number, path in enumerate(blocks):
        if path.exists():
            continue
        seeds = torch.arange(number * BLOCK, (number + 1) * BLOCK)
        block = np.empty((len(settings), BLOCK // unit, DIM + len(TRIANGLE[0])), np.float32)
        with torch.inference_mode():
            for index, x in walk(denoiser, settings, seeds):
                rounded = x.add(1).mul_((greys - 1) / 2).round_().clamp_(0, greys - 1).mul_(2 / (greys - 1)).sub_(1)
                features = extract(rounded).double().reshape(BLOCK // unit, unit, DIM)
                outer = (features.transpose(1, 2) @ features).numpy()
                block[index] = np.concatenate([features.sum(1).numpy(), outer[:, TRIANGLE[0], TRIANGLE[1]]], axis=1)
        np.save(path.with_suffix(".tmp.npy"), block)
        path.with_suffix(".tmp.npy").rename(path)
        done += 1
        if done in (1, 5) or done % 10 == 0:
            left = (time.monotonic() - began) / done * (len(blocks) - number - 1)
            print(f"{spec.name}: {number + 1} of {len(blocks)} blocks, {left / 60:.0f} min left", flush=True)
    packed = _joined(here, blocks)
    return Landscape(
        spec=spec, settings=settings, packed=packed, mean=mean, covariance=covariance, folder=here, unit=unit
    )


def _joined(here: Path, blocks: list[Path]) -> np.ndarray:
    """[settings, units, ...] of all blocks, as one file of gigabytes that processes share and read as they need it."""
    whole = here / f"packed-{len(blocks)}.npy"
    if not whole.exists():
        first = np.load(blocks[0], mmap_mode="r")
        count = first.shape[1]
        shape = (first.shape[0], len(blocks) * count, first.shape[2])
        joined = np.lib.format.open_memmap(whole.with_suffix(".tmp.npy"), "w+", first.dtype, shape)
        for number, path in enumerate(blocks):
            joined[:, number * count : (number + 1) * count] = np.load(path)
        joined.flush()
        whole.with_suffix(".tmp.npy").rename(whole)
    packed: np.ndarray = np.load(whole, mmap_mode="r")
    return packed
