"""Draw the design space: schedules, trajectories, weighting, truncation error; a model's loss by noise level."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
from matplotlib.figure import Figure

from edm_ray.checkpoint import open_model
from edm_ray.cli.console import say
from edm_ray.data.codec import codec_of, decode
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.diffusion.analytic import GaussianMixture
from edm_ray.diffusion.objectives import EDM, OBJECTIVES, loss_by_sigma
from edm_ray.diffusion.samplers import SamplerSettings, noise_levels
from edm_ray.diffusion.samplers.common import ode_step
from edm_ray.diffusion.samplers.time_steps import path_of
from edm_ray.diffusion.truncation import truncation_errors
from edm_ray.errors import InputError
from edm_ray.seeding import image_noise
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    out: str
    """Folder for the figures (PNG)."""
    model: str | None = None
    """Model directory: truncation error is measured on it, and with --data its loss by noise level."""
    data: str | None = None
    """Data set for the loss of the model."""
    num: int = 16
    """Number of images (or latents) to measure a model with."""
    num_steps: int = 18
    """Time steps of the samplers drawn."""


# Columns of Table 1 with a schedule of their own: name -> (schedule, scaling, discretization).
COLUMNS = {"VP": ("vp", "vp", "vp"), "VE": ("ve", "none", "ve"), "EDM": ("linear", "none", "edm")}


def mixture() -> GaussianMixture:
    """Two narrow modes on a line, as in figure 1."""
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    return GaussianMixture(means, torch.tensor([0.08, 0.08]), torch.tensor([0.5, 0.5]))


def column_settings(name: str, num_steps: int) -> SamplerSettings:
    schedule, scaling, discretization = COLUMNS[name]
    return SamplerSettings(num_steps=num_steps, schedule=schedule, scaling=scaling, discretization=discretization)


def draw_schedules(num_steps: int) -> Figure:
    """Noise level by step of each discretization, and by rho."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    denoiser = mixture()
    for name in ("edm", "vp", "ve", "iddpm"):
        left.plot(noise_levels(SamplerSettings(num_steps=num_steps, discretization=name), denoiser), ".-", label=name)
    for rho in (1.0, 3.0, 5.0, 7.0, 10.0):
        right.plot(noise_levels(SamplerSettings(num_steps=num_steps, rho=rho), denoiser), ".-", label=f"rho = {rho:g}")
    for axes, title in ((left, "Time steps (Table 1)"), (right, "edm time steps by rho")):
        axes.set(title=title, xlabel="step i", ylabel="noise level sigma", yscale="log")
        axes.legend()
    return figure


def draw_trajectories() -> Figure:
    """ODE trajectories of a 1-D mixture in (t, x) for three columns of Table 1 (figures 1 to 3)."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    denoiser = mixture()
    x_start = torch.linspace(-2, 2, 17, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for axes, name in zip(figure.subplots(1, 3), COLUMNS, strict=True):
        settings = column_settings(name, 200)
        path = path_of(settings, denoiser)
        top = path.sigma_inv(min(settings.sigma_range(denoiser)[1], 20.0 if name == "VP" else 3.0))
        times = np.linspace(top, path.sigma_inv(settings.sigma_range(denoiser)[0]), 200).tolist()
        x = x_start * (path.sigma(top) * path.s(top))
        track = [x.flatten().tolist()]
        for start, end in itertools.pairwise(times):
            x = ode_step(denoiser, x, start, end, path, None)
            track.append(x.flatten().tolist())
        axes.plot(times, track, color="#24304a", linewidth=0.8)
        axes.set(title=f"{name}: sigma(t) {settings.schedule}, s(t) {settings.scaling}", xlabel="t", ylabel="x")
    return figure


STYLES = {"edm": "-", "vp": "-", "ve": (0, (5, 5)), "iddpm": (5, (5, 5))}
"""lambda is the same 1 / sigma^2 for three of the four: their lines lie on one another."""


def draw_weighting(sigma_data: float) -> Figure:
    """Density of ln sigma in training against the weight lambda(sigma), of each objective."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    share = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    sigmas = torch.logspace(-3, 2.5, 200, dtype=torch.float64)
    for name, make in OBJECTIVES.items():
        objective = make(sigma_data=sigma_data)
        draw = share if objective.draw == "uniform" else torch.erfinv(2 * share - 1) * math.sqrt(2)
        left.hist(objective.sigma(draw).log().numpy(), bins=120, density=True, histtype="step", label=name)
        right.plot(sigmas, objective.weight(sigmas), label=name, linestyle=STYLES[name])
    left.set(title="p_train", xlabel="ln sigma", ylabel="density")
    right.set(title="lambda(sigma)", xlabel="sigma", xscale="log", yscale="log")
    left.legend()
    right.legend()
    return figure


def draw_truncation(denoiser: torch.nn.Module | GaussianMixture, latents: torch.Tensor, num_steps: int) -> Figure:
    """Root mean square error of one Heun step by noise level, rho in 3..10 (figure 13)."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    substeps = 16 if isinstance(denoiser, GaussianMixture) else 4
    for rho in (3.0, 5.0, 7.0, 10.0):
        settings = SamplerSettings(num_steps=num_steps, rho=rho)
        errors = truncation_errors(denoiser, latents, settings, substeps)
        axes.plot([sigma for sigma, _ in errors], [error for _, error in errors], ".-", label=f"rho = {rho:g}")
    axes.set(
        xscale="log", yscale="log", xlabel="sigma", ylabel="error of one step (rms)", title="Local truncation error"
    )
    axes.legend()
    return figure


def draw_loss(losses: torch.Tensor, sigmas: list[float]) -> Figure:
    """Weighted loss of a model by noise level, mean and standard error over images (figure 5a)."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    error = losses.std(1) / math.sqrt(losses.shape[1])
    axes.errorbar(sigmas, losses.mean(1), yerr=error, fmt="o-", capsize=3)
    axes.set(xscale="log", xlabel="sigma", ylabel="lambda(sigma) x mean squared error", title="Loss by noise level")
    return figure


def model_loss(model: torch.nn.Module, data: str, num: int, sigmas: list[float], sigma_data: float) -> torch.Tensor:
    """Loss of the first ``num`` images: float64 [len(sigmas), num]; labels as stored. Noise is keyed by position."""
    dataset = open_dataset(uris.absolute(data))
    if dataset.rows < num:
        raise InputError(f"{data}: {dataset.rows} images, --num {num} asks for more")
    pixels = open_reader(dataset)
    if not codec_of(model).is_pixels:
        raise InputError(f"--data {data}: the model makes latents; the loss is drawn for models of pixels only")
    images = decode(torch.from_numpy(np.ascontiguousarray(pixels.images[:num]))).double()
    network = model.model
    expected = (network.img_channels, network.img_resolution, network.img_resolution)
    if tuple(images.shape[1:]) != expected:
        raise InputError(f"{data}: images of shape {tuple(images.shape[1:])}, the model takes {expected}")
    labels = None
    if network.label_dim:
        classes = torch.from_numpy(np.asarray(pixels.labels[:num], np.int64))
        if int(classes.max()) >= network.label_dim:
            raise InputError(f"{data}: class {int(classes.max())}, the model knows 0..{network.label_dim - 1}")
        labels = torch.nn.functional.one_hot(classes, network.label_dim).float()
    noise = image_noise(torch.arange(num), "explain", tuple(images.shape[1:]))(0)
    return loss_by_sigma(model, EDM(sigma_data=sigma_data), images, noise, sigmas, labels)


def run(args: Args) -> None:
    if args.num < 2 or args.num_steps < 2:
        raise InputError("--num and --num-steps must be 2 or more")
    if args.data is not None and args.model is None:
        raise InputError("--data needs --model: it is the model whose loss is measured")
    sigma_data = 0.5
    denoiser: torch.nn.Module | GaussianMixture = mixture()
    latents = image_noise(torch.arange(256), "latents", (1, 1, 1))(0)
    figures = {"schedules": draw_schedules(args.num_steps), "trajectories": draw_trajectories()}
    with torch.inference_mode():
        if args.model is not None:
            opened = open_model(uris.absolute(args.model))
            sigma_data = opened.config.preconditioning.sigma_data
            denoiser = opened.denoiser()
            size = opened.config.network.img_resolution
            shape = (opened.config.network.img_channels, size, size)
            latents = image_noise(torch.arange(args.num), "latents", shape)(0)
            if args.data is not None:
                sigmas = np.geomspace(max(0.005, denoiser.sigma_min), min(50.0, denoiser.sigma_max), 15).tolist()
                losses = model_loss(denoiser, args.data, args.num, sigmas, sigma_data)
                figures["loss"] = draw_loss(losses, sigmas)
        figures["weighting"] = draw_weighting(sigma_data)
        figures["truncation"] = draw_truncation(denoiser, latents, args.num_steps)
    out = FilePath(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)
    say(f"{len(figures)} figures: {', '.join(str(out / (name + '.png')) for name in figures)}")
