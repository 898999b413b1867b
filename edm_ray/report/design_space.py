"""Figures of the design space, and of a model in it: what `edm-ray explain` draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from edm_ray.diffusion.analysis.analytic import GaussianMixture
from edm_ray.diffusion.analysis.inversion import round_trip_errors
from edm_ray.diffusion.analysis.truncation import truncation_errors
from edm_ray.diffusion.denoiser import AtLevel, Denoiser
from edm_ray.diffusion.objectives import OBJECTIVES, objective
from edm_ray.diffusion.samplers import Euler, Heun, Sampler
from edm_ray.diffusion.samplers.heun import ode_step

# Columns of Table 1 with a schedule of their own: name -> (schedule, scaling, discretization).
COLUMNS = {"VP": ("vp", "vp", "vp"), "VE": ("ve", "none", "ve"), "EDM": ("linear", "none", "edm")}
RHOS = (3.0, 5.0, 7.0, 10.0)
INVERTED_WITH = {
    "Heun, rho 3": Heun(rho=3.0),
    "Heun, rho 7": Heun(),
    "Euler, rho 3": Euler(rho=3.0),
}


def mixture() -> GaussianMixture:
    """Two narrow modes on a line, as in figure 1."""
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    return GaussianMixture(means, torch.tensor([0.08, 0.08]), torch.tensor([0.5, 0.5]))


def column_settings(name: str, num_steps: int) -> Heun:
    schedule, scaling, discretization = COLUMNS[name]
    return Heun(num_steps=num_steps, schedule=schedule, scaling=scaling, discretization=discretization)


def draw_schedules(num_steps: int) -> Figure:
    """Noise level by step of each discretization, and by rho; sigma(t) and s(t) of each column."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (left, right), (below, scale) = figure.subplots(2, 2)
    denoiser = mixture()
    for name in ("edm", "vp", "ve", "iddpm"):
        left.plot(Heun(num_steps=num_steps, discretization=name).noise_levels(denoiser), ".-", label=name)
    for rho in (1.0, *RHOS):
        right.plot(Heun(num_steps=num_steps, rho=rho).noise_levels(denoiser), ".-", label=f"rho = {rho:g}")
    for axes, title in ((left, "Time steps (Table 1)"), (right, "edm time steps by rho")):
        axes.set(title=title, xlabel="step i", ylabel="noise level sigma", yscale="log")
        axes.legend()
    share = np.linspace(1e-3, 1, 300)
    for name in COLUMNS:
        settings = column_settings(name, num_steps)
        path = settings.path(denoiser)
        times = share * path.sigma_inv(settings.sigma_range(denoiser)[1])
        style = "--" if name == "EDM" else "-"  # s(t) = 1 for two of them
        below.plot(share, [path.sigma(t) for t in times.tolist()], label=name, linestyle=style)
        scale.plot(share, [path.s(t) for t in times.tolist()], label=name, linestyle=style)
    below.set(title="sigma(t)", xlabel="t as a share of the largest t", ylabel="noise level sigma", yscale="log")
    scale.set(title="s(t)", xlabel="t as a share of the largest t", ylabel="scaling", yscale="log")
    below.legend()
    scale.legend()
    return figure


def draw_trajectories() -> Figure:
    """ODE trajectories of a 1-D mixture in (t, x) for three columns of Table 1 (figures 1 to 3)."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    denoiser = mixture()
    x_start = torch.linspace(-2, 2, 17, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for axes, name in zip(figure.subplots(1, 3), COLUMNS, strict=True):
        settings = column_settings(name, 200)
        path = settings.path(denoiser)
        top = path.sigma_inv(min(settings.sigma_range(denoiser)[1], 20.0 if name == "VP" else 3.0))
        times = np.linspace(top, path.sigma_inv(settings.sigma_range(denoiser)[0]), 200).tolist()
        x = x_start * (path.sigma(top) * path.s(top))
        track = [x.flatten().tolist()]
        for start, end in itertools.pairwise(times):
            x = ode_step(AtLevel(denoiser), x, start, end, path)
            track.append(x.flatten().tolist())
        axes.plot(times, track, color="#24304a", linewidth=0.8)
        axes.set(title=f"{name}: sigma(t) {settings.schedule}, s(t) {settings.scaling}", xlabel="t", ylabel="x")
    return figure


STYLES = {"edm": "-", "vp": "-", "ve": (0, (5, 5)), "iddpm": (5, (5, 5))}
"""lambda is the same 1 / sigma^2 for three of the four: their lines lie on one another."""


def draw_weighting(sigma_data: float) -> Figure:
    """Each objective's weight lambda(sigma) over its density of noise levels, on one axis of sigma."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    share = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    sigmas = torch.logspace(-3, 2.5, 200, dtype=torch.float64)
    edges = np.linspace(math.log(1e-3), math.log(10**2.5), 121)
    for name in OBJECTIVES:
        made = objective(name, **({"sigma_data": sigma_data} if name == "edm" else {}))
        draw = share if made.draw == "uniform" else torch.erfinv(2 * share - 1) * math.sqrt(2)
        counts, _ = np.histogram(made.sigma(draw).log().numpy(), bins=edges)
        below.stairs(counts / len(share) / np.diff(edges), np.exp(edges), label=name)
        above.plot(sigmas, made.weight(sigmas), label=name, linestyle=STYLES[name])
    above.set(title="Weight lambda(sigma)", yscale="log", xscale="log")
    below.set(title="Noise distribution p_train", xlabel="sigma", ylabel="density of ln sigma", xscale="log")
    above.legend()
    below.legend()
    return figure


def measure_truncation(
    denoiser: Denoiser,
    latents: torch.Tensor,
    num_steps: int,
    class_labels: torch.Tensor | None = None,
    substeps: int = 2,
) -> dict[float, list[tuple[float, float]]]:
    """rho -> (sigma, error of Heun's step from there) for rho in 3..10 (figure 13)."""
    made = {}
    for rho in RHOS:
        settings = Heun(num_steps=num_steps, rho=rho)
        made[rho] = truncation_errors(denoiser, latents, settings, substeps, class_labels)
    return made


def draw_truncation(measured: dict[float, list[tuple[float, float]]]) -> Figure:
    """Root mean square error of one Heun step by noise level."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for rho, errors in measured.items():
        axes.plot([sigma for sigma, _ in errors], [error for _, error in errors], ".-", label=f"rho = {rho:g}")
    axes.set(
        xscale="log", yscale="log", xlabel="sigma", ylabel="error of one step (rms)", title="Local truncation error"
    )
    axes.legend()
    return figure


def draw_sampler(sampler: Sampler, levels: list[float], errors: list[tuple[float, float]]) -> Figure:
    """A sampler's noise levels beside those of rho 7 in as many steps, and the error of each of its steps."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(levels, "o-", label=sampler.solver)
    left.plot(Heun(num_steps=max(len(levels), 2)).noise_levels(), ".--", color="grey", label="rho = 7")
    left.set(title="Noise levels", xlabel="step i", ylabel="noise level sigma", yscale="log")
    left.legend()
    right.plot([sigma for sigma, _ in errors], [error for _, error in errors], "o-")
    right.set(
        xscale="log", yscale="log", xlabel="sigma", ylabel="error of one step (rms)", title="Local truncation error"
    )
    return figure


def say_sampler(sampler: Sampler, levels: list[float], errors: list[tuple[float, float]]) -> list[str]:
    """The sampler, its cost, its noise levels and gammas as they can be given again, its worst step."""
    lines = [f"{sampler}: {sampler.nfe or 'as many as it needs'} network evaluations an image"]
    lines.append(f"  sigmas=[{', '.join(f'{level:.6g}' for level in levels)}], then 0")
    if isinstance(sampler, Euler) and any(gammas := [sampler.gamma(level, i) for i, level in enumerate(levels)]):
        lines.append(f"  gammas=[{', '.join(f'{gamma:.4g}' for gamma in gammas)}]")
    if errors:
        sigma, error = max(errors, key=lambda pair: pair[1])
        lines.append(f"  largest error of a step {error:.2g}, at sigma {sigma:.3g}")
    return lines


def say_truncation(measured: dict[float, list[tuple[float, float]]]) -> list[str]:
    """A line for each rho, and which has the smallest worst step."""
    worst = {rho: max(errors, key=lambda pair: pair[1]) for rho, errors in measured.items()}
    lines = [
        f"rho = {rho:g}: largest error of a step {error:.2g}, at sigma {sigma:.3g}"
        for rho, (sigma, error) in worst.items()
    ]
    best = min(worst, key=lambda rho: worst[rho][1])
    return [
        *lines,
        f"the largest error is smallest at rho = {best:g} (FID may prefer another: steps at low noise show)",
    ]


def measure_inversion(
    denoiser: Denoiser,
    images: torch.Tensor,
    steps: Sequence[int],
    class_labels: torch.Tensor | None = None,
) -> dict[str, dict[int, float]]:
    """Root mean square of image -> latent -> image by number of steps, for three samplers (appendix D.1)."""
    return {
        name: round_trip_errors(denoiser, images, settings, steps, class_labels)
        for name, settings in INVERTED_WITH.items()
    }


def draw_inversion(measured: dict[str, dict[int, float]]) -> Figure:
    """Round-trip error against the number of steps."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, errors in measured.items():
        axes.plot(list(errors), list(errors.values()), "o-", label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="steps each way",
        ylabel="rms of image - image",
        title="Inversion, there and back",
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
