"""Figures 2, 5b and 14 of the paper with tens of thousands of images a point, on 16x16 crops of photographs.

    python -m research.phenomena.crops CACHE [--num 20000] [--write]

An MLP (that of the landscape `crops` in research/race/landscape.py, and a wider one) is trained here as configurations
A, D and E of the paper say (preconditioning and objective; a minute each), and E four times as long. What is measured
is kept in CACHE/phenomena_large.json, so a run that was stopped resumes. An hour on one core. ``--write`` puts tables
into README.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_ray.diffusion.analysis.langevin import langevin
from edm_ray.diffusion.objectives import objective as make_objective
from edm_ray.diffusion.preconditioning import PRECONDITIONERS, Preconditioned
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.evaluation.fid import FidEstimate, fid_reference
from edm_ray.evaluation.influence import fid_of_features
from edm_ray.evaluation.published import PublishedMoments
from edm_ray.generation.generate import generate
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.seeding import image_noise, normal, stream_key, uniform
from research.phenomena.digits import NFES, SAMPLERS, paired, plus_minus, put, steps_for
from research.race.landscape import SPECS, Net, adam, load_data, train_features

SPEC, BITS, MICRO_BATCH = SPECS["crops"], 16, 500
WIDE = 512
"""VP's network predicts the noise, 256 numbers, which do not pass through the 96 units of the landscape's network."""
MODELS = {
    "D": ("D: EDM preconditioning, VP's objective", "edm", "vp", 1, SPEC.width),
    "E": ("E: EDM preconditioning and objective", "edm", "edm", 1, SPEC.width),
    "E, long": ("E, four times as long", "edm", "edm", 4, SPEC.width),
    "A, wide": (f"A: VP's preconditioning and objective, {WIDE} wide", "vp", "vp", 1, WIDE),
    "E, wide": (f"E, {WIDE} wide", "edm", "edm", 1, WIDE),
}
"""Title, preconditioning, objective, length in units of --steps, width."""
LABEL_SCALE = {"edm": 1.0, "vp": 1 / 300}
"""The network's waves are made for c_noise of about -2 to 2; VP's runs from 0 to 999."""
CHURNS = (0.0, 1.0, 2.0, 4.0, 7.0)
WINDOW = (0.05, 10.0)
LEVELS, ITERATIONS, LANGEVIN_NOISE, LANGEVIN_IMAGES = (0.1, 0.3), (0, 10, 30, 100), (1.0, 1.01, 0.9), 10_000


class Bench:
    """The crops, features of them, models, and what was measured before."""

    def __init__(self, cache: Path, num: int, steps: int = SPEC.train_steps) -> None:
        self.cache, self.num, self.steps, self.file = cache, num, steps, cache / "phenomena_large.json"
        cache.mkdir(parents=True, exist_ok=True)
        self.images, labels, _ = load_data(SPEC.data)
        self.sigma_data = float(self.images.std())
        self.extract, mean, covariance = train_features(SPEC, self.images, labels)
        self.reference = fid_reference(
            PublishedMoments(mean=mean, covariance=covariance, extractor="features of crops", scale_bits=BITS)
        )
        self.kept: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.models: dict[str, ModelDenoiser] = {}

    def model(self, name: str) -> ModelDenoiser:
        if name not in self.models:
            _, preconditioning, objective, length, width = MODELS[name]
            steps = length * self.steps
            torch.manual_seed(SPEC.seed)
            network = Net(self.images.shape[-1], width, SPEC.depth)
            network.frequencies = network.frequencies * LABEL_SCALE[preconditioning]
            denoiser = PRECONDITIONERS[preconditioning](
                network, **({"sigma_data": self.sigma_data} if preconditioning == "edm" else {})
            )
            path = self.cache / f"phenomena-{preconditioning}-{objective}-{steps}-{width}.pt"
            if path.exists():
                denoiser.load_state_dict(torch.load(path, weights_only=True))
            else:
                denoiser.load_state_dict(self.train(denoiser, objective, steps))
                torch.save(denoiser.state_dict(), path)
            self.models[name] = ModelDenoiser(denoiser.eval().requires_grad_(False), network)
        return self.models[name]

    def train(self, denoiser: Preconditioned, name: str, steps: int) -> dict[str, torch.Tensor]:
        """Batches of 512; the average of the weights."""
        constants = {"sigma_data": self.sigma_data} if name == "edm" else {}
        objective, images = make_objective(name, **constants), self.images
        average = {key: value.clone() for key, value in denoiser.state_dict().items()}
        size = math.prod(images.shape[1:])

        def loss(step: int) -> torch.Tensor:
            where = torch.arange(step * 512, (step + 1) * 512)
            batch = images[(uniform(stream_key("rows", SPEC.seed), where, 1)[:, 0] * len(images)).long()]
            noise = normal(stream_key("noise", SPEC.seed), where, size).float().reshape(batch.shape)
            unit = {"normal": normal, "uniform": uniform}[objective.draw]
            draw = unit(stream_key("sigma", SPEC.seed), where, 1)[:, 0].float()
            return objective.loss(denoiser, batch, draw, noise).mean()

        for _ in adam(denoiser.parameters(), loss, steps, 3e-3):
            for key, value in denoiser.state_dict().items():
                average[key].lerp_(value, 0.005)
        return average

    def once(self, key: str, make: Callable[[], torch.Tensor]) -> FidEstimate:
        """FID of uint8 images [N, 1, S, S] of seeds 0..N-1, with its standard error."""
        if key not in self.kept:
            images = make()
            with torch.inference_mode():
                features = self.extract(images.flatten(1).float() / 127.5 - 1).double().numpy()
            grid, seeds = np.rint(features * 2**BITS).astype(np.int32), np.arange(len(images))
            self.kept[key] = fid_of_features(grid, seeds, self.reference).to_dict()
            self.file.write_text(json.dumps(self.kept))
            print(f"{key}: FID {self.kept[key]['fid']:.3f} +- {1.96 * self.kept[key]['se']:.3f}", flush=True)
        return FidEstimate.from_dict(self.kept[key])

    def fid(self, name: str, settings: Sampler) -> FidEstimate:
        seeds = torch.arange(self.num, dtype=torch.int64)
        return self.once(
            f"{name} n={self.num} {settings}",
            lambda: generate(self.model(name), seeds, settings, micro_batch=MICRO_BATCH),
        )


def figure_2(bench: Bench) -> str:
    lines = ["| model | sampler | " + " | ".join(f"NFE {nfe}" for nfe in NFES) + " |", "|---" * (len(NFES) + 2) + "|"]
    for name in ("D", "E, long"):
        for name_of_sampler, fields in SAMPLERS.items():
            row = []
            for nfe in NFES:
                steps = steps_for(nfe, fields.get("solver", "heun"))
                row.append(plus_minus(bench.fid(name, sampler(**fields, num_steps=steps))))
            lines.append(f"| {name} | {name_of_sampler} | {' | '.join(row)} |")
    return "\n".join(lines)


def figure_5b(bench: Bench) -> str:
    lines = [
        "| model | " + " | ".join(f"S_churn {churn:g}" for churn in CHURNS) + " | most against none, paired |",
        "|---" * (len(CHURNS) + 2) + "|",
    ]
    for name, (title, *_) in MODELS.items():
        found = [bench.fid(name, sampler(s_churn=churn, s_tmin=WINDOW[0], s_tmax=WINDOW[1])) for churn in CHURNS]
        last = paired(found[-1], found[0])
        lines.append(f"| {title} | {' | '.join(plus_minus(each) for each in found)} | {last} |")
    return "\n".join(lines)


def figure_14(bench: Bench) -> str:
    """Crops of the training set with noise of one level, raised and lowered again; then denoised once."""
    count = min(LANGEVIN_IMAGES, len(bench.images))
    where = torch.arange(count)
    rows = (uniform(stream_key("langevin rows"), where, 1)[:, 0] * len(bench.images)).long()
    clean, noise = bench.images[rows].double(), image_noise(where, "langevin", bench.images.shape[1:])
    start_noise = image_noise(where, "langevin start", bench.images.shape[1:])(0)
    lines = [
        "| sigma, S_noise | "
        + " | ".join(f"{iterations} iterations" for iterations in ITERATIONS)
        + " | last against first, paired |",
        "|---" * (len(ITERATIONS) + 2) + "|",
    ]
    denoiser = bench.model("E, long")

    def denoised(x: torch.Tensor, level: float) -> torch.Tensor:
        out = denoiser(x, torch.full((len(x),), level, dtype=torch.float64))
        return ((out + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    for level in LEVELS:
        for s_noise in LANGEVIN_NOISE:
            x, done, found = clean + start_noise * level, 0, []
            for iterations in ITERATIONS:
                key = f"langevin n={count} sigma={level} s_noise={s_noise} {iterations}"
                if key not in bench.kept:
                    with torch.inference_mode():
                        more, first = iterations - done, done
                        x = langevin(denoiser, x, level, more, lambda i, first=first: noise(first + i), s_noise=s_noise)
                    done = iterations
                found.append(bench.once(key, lambda x=x, level=level: denoised(x, level)))
            line = " | ".join(plus_minus(each) for each in found)
            lines.append(f"| {level:g}, {s_noise:g} | {line} | {paired(found[-1], found[0])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=SPEC.train_steps, help="training steps of a model")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    bench = Bench(args.cache, args.num, args.steps)
    for title, part in {"figure 5b": figure_5b, "figure 14": figure_14, "figure 2": figure_2}.items():
        text = part(bench)
        print(f"\n{title}\n{text}\n", flush=True)
        if args.write:
            put(f"{title} on crops", text)


if __name__ == "__main__":
    main()
