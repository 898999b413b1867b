"""All that the golden values need of the package, in plain values: the one file here that changes with its layout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from edm_ray import seeding
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.config.shape import DataShape
from edm_ray.config.text import parse_yaml
from edm_ray.data.write import write_dataset
from edm_ray.diffusion.analysis.analytic import GaussianMixture
from edm_ray.diffusion.analysis.inversion import invert, reconstruct
from edm_ray.diffusion.analysis.langevin import langevin
from edm_ray.diffusion.analysis.truncation import truncation_errors
from edm_ray.diffusion.samplers import Euler, Sampler, sample, sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.extractors.digits import DigitsClassifier, save_digits_classifier
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.fid import FidEstimate, fid_reference
from edm_ray.evaluation.influence import fid_of_features
from edm_ray.evaluation.kid import kid
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.precision_recall import precision_recall
from edm_ray.generation.generate import generate, labels_of
from edm_ray.models import open_model
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.networks.build import build_denoiser, config_of
from edm_ray.search.driver import Driver
from edm_ray.search.plan import sweep_plan
from edm_ray.search.result import result_of
from edm_ray.search.space import space_of
from edm_ray.training.device import Place
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store, model_uri
from tests.golden.cases import Flat
from tests.training.together import run_together, train_in_process

Refused = InputError
SHAPE = (2, 2, 3)
"""Of an image of the closed-form denoisers."""
DIGIT = DataShape(resolution=8, channels=1, num_classes=10)

# -- random numbers ----------------------------------------------------------------------------------------------------


def normal(purpose: str, seeds: torch.Tensor, count: int, step: int = 0, draw: int = 0) -> torch.Tensor:
    return seeding.normal(seeding.stream_key(purpose, 0), seeds, count, step, draw)


def random_numbers(seeds: torch.Tensor, count: int, step: int, draw: int) -> dict[str, Any]:
    key = seeding.stream_key("golden", 5)
    return {
        "key": key,
        "words": seeding.words(key, seeds, count, step, draw).tolist(),
        "uniform": seeding.uniform(key, seeds, count, step, draw).numpy(),
        "normal": seeding.normal(key, seeds, count, step, draw).numpy(),
    }


def classes_of(seeds: torch.Tensor, policy: str) -> list[int]:
    return labels_of(seeds, 10, policy).tolist()


# -- samplers ----------------------------------------------------------------------------------------------------------


def make_sampler(flat: Flat) -> Sampler:
    return sampler(**flat)


def flat_of(sampler: Sampler) -> Flat:
    """The solver and what differs from its defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(sampler)}
    changed = {name: value for name, value in dataclasses.asdict(sampler).items() if value != defaults[name]}
    return {"solver": sampler.solver, **changed}


class _Mixture:
    """Two Gaussians; with ``classes`` a label chooses one of them, without a label it is both."""

    def __init__(self, classes: bool = False, sd: float = 0.3) -> None:
        means = normal("golden means", torch.arange(2), math.prod(SHAPE)).reshape(2, *SHAPE) * 0.4
        both = GaussianMixture(means, torch.tensor([sd, 0.5]), torch.tensor([0.3, 0.7]))
        parts = [GaussianMixture(means[i : i + 1], both.sds[i : i + 1], torch.ones(1)) for i in range(2)]
        self.both, self.parts, self.classes = both, parts, classes

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        if not self.classes or class_labels is None:
            return self.both(x, sigma)
        one, two = (part(x, sigma) for part in self.parts)
        return torch.where(class_labels[:, 0].bool().reshape(-1, 1, 1, 1), one, two)


class _OnGrid(_Mixture):
    """Knows 60 noise levels from 0.02 to 50."""

    sigma_min, sigma_max = 0.02, 50.0

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        grid = torch.tensor([0.02 * 2500 ** (i / 59) for i in range(59)] + [50.0], dtype=torch.float64)
        nearest = (sigma.to(torch.float64).reshape(-1, 1) - grid).abs().argmin(1)
        return grid[nearest].reshape(sigma.shape).to(sigma)


def closed_form(kind: str) -> Any:
    """mixture, classes (for classifier-free guidance), auto (another guides it), or grid (it rounds noise levels)."""
    return _OnGrid() if kind == "grid" else _Mixture(classes=kind == "classes")


def sampler_facts(flat: Flat, denoiser: Any) -> dict[str, Any]:
    """What a sampler says of itself before it runs."""
    sampler = make_sampler(flat)
    return {
        "nfe": sampler.nfe,
        "needs_noise": sampler.needs_noise(denoiser),
        # Of rk45 only the two ends act; recorded are the levels of its discretization.
        "noise_levels": np.array(Sampler.noise_levels(sampler, denoiser)),
        "effective": flat_of(sampler.effective(denoiser)),
    }


def sample_analytic(flat: Flat, kind: str, seeds: torch.Tensor) -> np.ndarray:
    """float64 [B, *SHAPE]."""
    latents = seeding.image_noise(seeds, "latents", SHAPE)(0)
    noise = seeding.image_noise(seeds, "churn", SHAPE)
    labels = torch.eye(2)[seeds % 2] if kind == "classes" else None
    guide = _Mixture(sd=0.8) if kind == "auto" else None
    return sample(closed_form(kind), latents, make_sampler(flat), labels, noise, guide).numpy()


def analyses(flat: Flat, seeds: torch.Tensor) -> dict[str, np.ndarray]:
    """Truncation errors of a sampler; of those that invert, the latents and the way back."""
    denoiser, sampler = closed_form("mixture"), make_sampler(flat)
    latents = seeding.image_noise(seeds, "latents", SHAPE)(0)
    found = {"truncation": np.array(truncation_errors(denoiser, latents, sampler, substeps=2))}
    if isinstance(sampler, Euler):
        found["inverted"] = invert(denoiser, latents * 0.5, sampler).numpy()
        found["reconstructed"] = reconstruct(denoiser, latents, sampler).numpy()
    return found


def langevin_of(seeds: torch.Tensor) -> np.ndarray:
    x = seeding.image_noise(seeds, "latents", SHAPE)(0)
    noise = seeding.image_noise(seeds, "churn", SHAPE)
    return langevin(closed_form("mixture"), x, 0.4, 5, noise, gamma=0.3, s_noise=1.01).numpy()


# -- networks ----------------------------------------------------------------------------------------------------------


def make_network(settings: list[str]) -> torch.nn.Module:
    """The preconditioned network, its weights moved by fixed noise: at the start its output would be zero."""
    denoiser = build_denoiser(configure(tiny(DIGIT), None, settings).denoiser, seed=3)
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(denoiser.named_parameters())):
            moved = 0.05 * normal("golden weights", torch.tensor([i]), parameter.numel())
            parameter += moved.reshape(parameter.shape).to(torch.float32)
    return denoiser.eval().requires_grad_(False)


def denoise(denoiser: torch.nn.Module, seeds: torch.Tensor, sigma: float) -> np.ndarray:
    """D at one noise level: float32 [B, 1, 8, 8]."""
    x = sigma * seeding.image_noise(seeds, "latents", (1, 8, 8))(0)
    return denoiser(x, torch.tensor(sigma), torch.eye(10)[seeds % 10]).numpy()


def generate_images(
    denoiser: torch.nn.Module, flat: Flat, labels: str, seeds: torch.Tensor, guide: torch.nn.Module | None = None
) -> np.ndarray:
    """uint8 [B, 1, 8, 8]."""
    guiding = None if guide is None else ModelDenoiser(guide, config_of(guide).network)
    return generate(
        ModelDenoiser(denoiser, config_of(denoiser).network, guide=guiding),
        seeds,
        make_sampler(flat),
        labels=labels,
        micro_batch=4,
    ).numpy()


# -- training ----------------------------------------------------------------------------------------------------------


def make_dataset(images: np.ndarray, labels: np.ndarray, uri: str) -> str:
    """A data set of uint8 [N, 1, 8, 8] with ten classes."""
    write_dataset(uri, images, labels, [str(i) for i in range(10)], name="golden", split="train")
    return uri


def train_tiny(workers: int, data: str, uri: str, settings: list[str]) -> dict[str, Any]:
    """One run, without Ray: rows of metrics, and all tensors of its last checkpoint and of its model by group."""
    if workers == 1:
        train_in_process(data, uri, settings, Place())
    else:
        assert run_together(workers, data, uri, settings) == [0] * workers
    checkpoint = checkpoint_store(uri).latest()
    groups = dict(checkpoint.tensors)
    del groups["tally"]
    groups["published"] = safetensors.torch.load(open_model(model_uri(uri)).weights)
    return {"images_seen": checkpoint.images_seen, "metrics": read_metrics(uri), "tensors": groups}


# -- evaluation --------------------------------------------------------------------------------------------------------


def digits_extractor(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 [N, 1, 8, 8] -> int32 [N, 64], by weights that are fixed noise."""
    state = DigitsClassifier().state_dict()
    for i, name in enumerate(sorted(state)):
        values = normal("golden extractor", torch.tensor([i]), state[name].numel()).reshape(state[name].shape)
        state[name] = (values / math.sqrt(max(1, state[name][0].numel()))).to(torch.float32)
    path = folder / "digits.safetensors"
    save_digits_classifier(state, path)
    extractor = load_extractor("digits", path)
    return lambda images: extractor.extract(torch.from_numpy(images))


def measures(features: np.ndarray, seeds: np.ndarray, reference: np.ndarray, scale_bits: int) -> dict[str, Any]:
    """FID, KID, precision and recall of int32 features [n, d] against those of a reference [m, d]."""
    moments = Moments.of(reference, "golden", scale_bits)
    estimate = fid_of_features(features, seeds, fid_reference(moments))
    kernel = kid(features, seeds, reference, scale_bits, 10, subsets=20, subset_size=30).to_dict()
    return {
        "moments": {"bits": moments.hash},
        "fid": {name: estimate.to_dict()[name] for name in ("fid", "debiased", "se", "n", "influence")},
        "kid": kernel,
        "prc": precision_recall(features, reference).to_dict(),
    }


# -- sweeps ------------------------------------------------------------------------------------------------------------


class Sweep:
    """One strategy on a made-up world: what it asks, in plain values, and what it is told."""

    def __init__(self, space: str, plan: dict[str, Any], seed: int) -> None:
        changes = {name: tuple(value) if isinstance(value, list) else value for name, value in plan.items()}
        self._driver = Driver(space_of(parse_yaml(space, "space"), "space"), sweep_plan(**changes), seed)
        self.most_images = self._driver.search.budget.most_images

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """label, sampler, stage, seeds and chunks of each evaluation asked; `tell` all before the next batch."""
        while not self._driver.finished:
            batch = self._driver.ask()
            assert batch
            self._ids = [each.id for each in batch]
            yield [
                {"label": e.label, "sampler": flat_of(e.settings), "stage": e.stage, "seeds": e.seeds, "n": e.chunks}
                for e in batch
            ]

    def tell(self, index: int, **estimate: Any) -> None:
        self._driver.tell(self._ids[index], FidEstimate(**estimate, reference="r", extractor="e"), seconds=1.0)

    def result(self) -> dict[str, Any]:
        result = result_of(self._driver)
        names = ("found", "best", "paper", "first_chunks", "images", "evaluations", "within")
        return {
            **{name: getattr(result, name) for name in names},
            **{name: list(getattr(result, name)) for name in ("line", "tied", "front")},
            "cheapest": result.cheapest,
            "stopped": bool(result.stopped),
            "most_images": self.most_images,
            "noise": None if result.noise is None else dataclasses.asdict(result.noise),
            "costs": [list(dataclasses.astuple(cost)) for cost in result.costs],
            "confirmed": [
                {
                    "label": entry.label,
                    "fid": entry.estimate.fid,
                    "gain": None if entry.gain is None else list(entry.gain),
                    "against_paper": entry.against_paper and dataclasses.asdict(entry.against_paper),
                    "probability_best": entry.probability_best,
                }
                for entry in result.confirmed
            ],
        }
