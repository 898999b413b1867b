"""Draw the design space: schedules, trajectories, weighting, truncation error, and a model's loss by noise level.

With --sampler or --set, also explain one sampler: its noise levels, churn by step, cost, and the error of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as FilePath

import numpy as np
import torch

from edm_ray.cli.console import Reports, report, say
from edm_ray.cli.sampler import choose_settings
from edm_ray.data.codec import decode
from edm_ray.data.importers.source import PICTURE_SUFFIXES
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.diffusion.analysis.inversion import reconstruct
from edm_ray.diffusion.analysis.truncation import truncation_errors
from edm_ray.diffusion.denoiser import Denoiser
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.noise import SIGMA_DATA
from edm_ray.diffusion.objectives import EDM, loss_by_sigma
from edm_ray.diffusion.samplers import Heun
from edm_ray.errors import InputError
from edm_ray.generation.generate import labels_of
from edm_ray.models import open_model
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.report import design_space as drawn
from edm_ray.seeding import image_noise
from edm_ray.storage import uris

FIGURES = ("schedules", "trajectories", "loss", "sampler", "weighting", "truncation", "inversion")
"""Of all that may be drawn; NAME.png each."""


@dataclass(frozen=True)
class Args(Reports):
    out: str
    """Folder for the figures (PNG)."""
    model: str | None = None
    """Model directory: measure its truncation and inversion errors, and with --data its loss by noise level."""
    data: str | None = None
    """Data set for the model's loss."""
    num: int = 16
    """Number of images (or latents) to measure a model with."""
    num_steps: int = 18
    """Time steps of the samplers in the figures."""
    sampler: str | None = None
    """Sampler to explain: best-sampler.yaml or best-samplers.yaml of a sweep, or the directory that holds one."""
    nfe: int | None = None
    """Which sampler to take from best-samplers.yaml (`sweep --nfe`): the best with at most this many network
    evaluations."""
    set: list[str] = field(default_factory=list)
    """Settings of the sampler to explain, e.g. --set solver=unipc num_steps=8; they override those of --sampler."""


def read_images(model: ModelDenoiser, data: str, num: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The first ``num`` images of a data set, float64 in [-1, 1], and their labels, one-hot, if the model takes any."""
    dataset = open_dataset(uris.absolute(data))
    if dataset.rows < num:
        raise InputError(f"{data}: {dataset.rows} images, --num {num} asks for more")
    pixels = open_reader(dataset)
    if not model.codec.is_pixels:
        raise InputError(f"--data {data}: the model makes latents; the loss is drawn for models of pixels only")
    images = decode(torch.from_numpy(np.ascontiguousarray(pixels.images[:num]))).double()
    if tuple(images.shape[1:]) != model.shape:
        raise InputError(f"{data}: images of shape {tuple(images.shape[1:])}, the model takes {model.shape}")
    if not model.label_dim:
        return images, None
    classes = torch.from_numpy(np.asarray(pixels.labels[:num], np.int64))
    if int(classes.max()) >= model.label_dim:
        raise InputError(f"{data}: class {int(classes.max())}, the model knows 0..{model.label_dim - 1}")
    return images, one_hot_labels(classes, model.label_dim)


def run(args: Args) -> None:
    if args.num < 2 or args.num_steps < 2:
        raise InputError("--num and --num-steps must be 2 or more")
    if FilePath(args.out).suffix.lower() in PICTURE_SUFFIXES:
        raise InputError(f"--out {args.out}: a folder for several figures, not a file; give e.g. --out figures")
    asked = args.sampler or args.set or args.nfe is not None
    explained = choose_settings(args.sampler, args.set, args.nfe) if asked else None
    if args.data is not None and args.model is None:
        raise InputError("--data needs --model: it is the model whose loss is measured")
    sigma_data = SIGMA_DATA
    denoiser: Denoiser = drawn.mixture()
    latents, labels = image_noise(torch.arange(256), "latents", (1, 1, 1))(0), None
    steps, substeps = [8, 16, 32, 64, 128], 8
    figures = {"schedules": drawn.draw_schedules(args.num_steps), "trajectories": drawn.draw_trajectories()}
    with torch.inference_mode():
        if args.model is not None:
            opened = open_model(uris.absolute(args.model))
            sigma_data = getattr(opened.config.preconditioning, "sigma_data", SIGMA_DATA)
            model = denoiser = opened.denoiser()
            seeds = torch.arange(args.num)
            latents = image_noise(seeds, "latents", model.shape)(0)
            if model.label_dim:
                classes_of_seeds = labels_of(seeds, model.label_dim, "random", model.empty_classes)
                labels = one_hot_labels(classes_of_seeds, model.label_dim)
            steps, substeps = [8, 16, 32], 2
            if args.data is not None:
                images, classes = read_images(model, args.data, args.num)
                sigmas = np.geomspace(max(0.005, model.sigma_min), min(50.0, model.sigma_max), 15).tolist()
                noise = image_noise(seeds, "explain", tuple(images.shape[1:]))(0)
                losses = loss_by_sigma(model, EDM(sigma_data=sigma_data), images, noise, sigmas, classes)
                figures["loss"] = drawn.draw_loss(losses, sigmas)
        if explained is not None:
            measurable = explained.solver != "rk45"  # its steps adapt
            step_errors = truncation_errors(denoiser, latents, explained, substeps, labels) if measurable else []
            levels = explained.noise_levels(denoiser)
            figures["sampler"] = drawn.draw_sampler(explained, levels, step_errors)
            for line in drawn.say_sampler(explained, levels, step_errors):
                say(line)
        figures["weighting"] = drawn.draw_weighting(sigma_data)
        truncation = drawn.measure_truncation(denoiser, latents, args.num_steps, labels, substeps)
        figures["truncation"] = drawn.draw_truncation(truncation)
        made = reconstruct(denoiser, latents, Heun(), labels)
        inversion = drawn.measure_inversion(denoiser, made, steps, labels)
        figures["inversion"] = drawn.draw_inversion(inversion)
    assert set(figures) <= set(FIGURES)
    out = FilePath(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)
    for line in drawn.say_truncation(truncation):
        say(line)
    for name, errors in inversion.items():
        say(
            f"inversion and back, {name}: " + ", ".join(f"{count} steps {error:.2g}" for count, error in errors.items())
        )
    report({"figures": [str(out / f"{name}.png") for name in figures], "inversion": inversion})
    say(f"{len(figures)} figures: {', '.join(str(out / (name + '.png')) for name in figures)}")
