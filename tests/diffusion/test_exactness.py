"""Every sampler against the NumPy version, and as the papers that it is from write it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from edm_ray.diffusion.samplers import SOLVERS as SAMPLERS
from edm_ray.diffusion.samplers import Sampler, sample, sampler
from edm_ray.seeding import image_noise
from tests.diffusion.numpy_samplers import SOLVERS, denoise, numpy_sample, score

COLUMNS = list(itertools.product(("edm", "vp", "ve", "iddpm"), ("linear", "vp", "ve"), ("none", "vp")))
NOISE = image_noise(torch.arange(2), "churn", (3, 2, 2))
CHURN = {
    "none": {},
    "window": {"s_churn": 10.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007},
    "capped": {"s_churn": 1e3},
    "bins": {"churn_bins": ((0.01, 0.3, 2.0), (1.0, 20.0, 5.0)), "s_noise": 0.99},
    "restarts": {"restarts": ((0.3, 5.0, 3, 2), (8.0, 30.0, 2, 1)), "s_noise": 1.01},
}


def check(gaussian, latents, **changes) -> None:
    settings = sampler(**changes)
    ours = sample(gaussian, latents, settings, noise=NOISE).numpy()
    tolerance = 1e-9 if settings.schedule == "linear" or churned(settings) else 1e-6
    assert np.abs(ours - numpy_sample(latents, settings, NOISE)).max() < tolerance, settings


def churned(settings: Sampler) -> bool:
    return any(getattr(settings, name, None) for name in ("s_churn", "churn_bins", "restarts"))


@pytest.mark.parametrize("column", COLUMNS, ids="-".join)
@pytest.mark.parametrize("churn", CHURN)
def test_every_ode_solver_with_every_column_and_churn_agrees_with_numpy(gaussian, latents, column, churn) -> None:
    discretization, schedule, scaling = column
    names = {"discretization": discretization, "schedule": schedule, "scaling": scaling}
    # alpha = 1.1 (the paper's best) would look below noise level 0 on long last steps: there it is another sampler.
    alphas = (1.0, 0.5, 2 / 3, 1.1) if (discretization, schedule) == ("edm", "linear") else (1.0, 0.5, 2 / 3)
    check(gaussian, latents, num_steps=7, solver="euler", **names, **CHURN[churn])
    for alpha in alphas:
        steps = 18 if alpha > 0.6 else 7
        check(gaussian, latents, num_steps=steps, alpha=alpha, **names, **CHURN[churn])


@pytest.mark.parametrize("column", COLUMNS, ids="-".join)
@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"heun", "euler"}))
def test_every_other_solver_with_every_column_agrees_with_numpy(gaussian, latents, column, solver) -> None:
    discretization, schedule, scaling = column
    for steps, s_noise in ((2, 1.0), (3, 1.0), (18, 1.007 if SAMPLERS[solver].is_sde else 1.0)):
        check(
            gaussian,
            latents,
            num_steps=steps,
            solver=solver,
            s_noise=s_noise,
            discretization=discretization,
            schedule=schedule,
            scaling=scaling,
        )


def test_euler_on_the_iddpm_steps_is_ddim(gaussian, latents) -> None:
    """Song, Meng, Ermon 2021, equation 12 with eta = 0: in sqrt(abar) y + sqrt(1 - abar) n."""
    settings = sampler(num_steps=20, solver="euler", discretization="iddpm")
    levels = np.append(settings.noise_levels(gaussian), 0.0)
    abar = 1 / (1 + levels**2)
    x = latents.numpy() * levels[0] * math.sqrt(abar[0])
    for now, following, level in zip(abar[:-1], abar[1:], levels[:-1]):
        clean = denoise(x / math.sqrt(now), level)
        noise = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
        x = math.sqrt(following) * clean + math.sqrt(1 - following) * noise
    assert np.abs(sample(gaussian, latents, settings).numpy() - x).max() < 1e-9


def test_euler_maruyama_with_vp_choices_is_songs_vp_sde(gaussian, latents) -> None:
    """dx = -beta/2 x dt + sqrt(beta) dw, beta = 0.1 + 19.9 t, from t = 1 to 1e-3, in equal steps."""
    settings = sampler(num_steps=50, solver="euler_maruyama", discretization="vp", schedule="vp", scaling="vp")
    t = np.linspace(1.0, 1e-3, 50)
    mean = np.exp(-0.25 * 19.9 * t**2 - 0.05 * t)
    x = latents.numpy() * np.sqrt(1 - mean[0] ** 2)
    for k in range(49):
        beta, sigma, h = 0.1 + 19.9 * t[k], np.sqrt(1 / mean[k] ** 2 - 1), t[k] - t[k + 1]
        gradient = score(x / mean[k], sigma) / mean[k]
        x = x + (beta / 2 * x + beta * gradient) * h + np.sqrt(beta * h) * NOISE(k).numpy()
    x = denoise(x / mean[-1], np.sqrt(1 / mean[-1] ** 2 - 1))
    assert np.abs(sample(gaussian, latents, settings, noise=NOISE).numpy() - x).max() < 1e-6


def test_euler_maruyama_with_ve_choices_is_songs_ve_sde(gaussian, latents) -> None:
    """dx = dw in time sigma^2, so a step adds (t - t') score and noise of variance t - t'."""
    settings = sampler(num_steps=50, solver="euler_maruyama", discretization="ve", schedule="ve")
    t = 100.0**2 * (0.02**2 / 100.0**2) ** (np.arange(50) / 49)
    x = latents.numpy() * 100.0
    for k in range(49):
        h = t[k] - t[k + 1]
        x = x + h * score(x, math.sqrt(t[k])) + math.sqrt(h) * NOISE(k).numpy()
    assert np.abs(sample(gaussian, latents, settings, noise=NOISE).numpy() - denoise(x, 0.02)).max() < 1e-9


@pytest.mark.parametrize("schedule,scaling", [("linear", "none"), ("vp", "vp"), ("ve", "none"), ("linear", "vp")])
@pytest.mark.parametrize("solver", ["euler_maruyama", "dpmpp_3m_sde"])
def test_noisy_solvers_have_the_variance_of_their_recursion(gaussian, solver, schedule, scaling) -> None:
    """For Gaussian data a sampler is linear in the latent and in each noise: its variance is the sum of squares."""
    settings = sampler(num_steps=14, solver=solver, schedule=schedule, scaling=scaling)
    variance = float(variance_of(gaussian, settings))
    seeds = torch.arange(200)
    x = sample(
        gaussian,
        image_noise(seeds, "latents", (1, 16, 16))(0),
        settings,
        noise=image_noise(seeds, "churn", (1, 16, 16)),
    )
    assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / x.numel()))


def variance_of(gaussian, settings: Sampler) -> float:
    """Image k of the batch gets one of latent, noise(0), noise(1), ... alone: its response is one coefficient."""
    count = settings.num_steps
    start = torch.zeros(count + 1, 1, 1, 1, dtype=torch.float64)
    start[0] = 1.0

    def noise(step: int, draw: int = 0) -> torch.Tensor:
        return torch.eye(count + 1, dtype=torch.float64)[step + 1].reshape(-1, 1, 1, 1)

    centred = type(gaussian)(mean=0.0)
    return float((sample(centred, start, settings, noise=noise) ** 2).sum())


@pytest.mark.parametrize("column", [("edm", "linear", "none"), ("vp", "vp", "vp"), ("ve", "ve", "none")], ids="-".join)
@pytest.mark.parametrize("noisy", ["churn", "restarts"])
def test_in_every_column_the_marginal_is_that_of_the_data_as_steps_grow(gaussian, column, noisy) -> None:
    discretization, schedule, scaling = column
    names = {"discretization": discretization, "schedule": schedule, "scaling": scaling, "sigma_min": 0.002}
    errors = []
    for steps in (32, 64, 128):
        changes = {"s_churn": 20.0} if noisy == "churn" else {"restarts": ((0.3, 5.0, steps, 2),)}
        settings = sampler(num_steps=steps, **names, **changes)
        errors.append(abs(variance_of_all(gaussian, settings) / 0.25 - 1))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0], errors


def variance_of_all(gaussian, settings: Sampler) -> float:
    """As `variance_of`, with the noises of restarts too."""
    places = [(step, draw) for step in range(settings.num_steps) for draw in range(3)]
    start = torch.zeros(len(places) + 1, 1, 1, 1, dtype=torch.float64)
    start[-1] = 1.0

    def noise(step: int, draw: int = 0) -> torch.Tensor:
        unit = torch.zeros(len(places) + 1, 1, 1, 1, dtype=torch.float64)
        unit[places.index((step, draw))] = 1.0
        return unit

    return float((sample(type(gaussian)(mean=0.0), start, settings, noise=noise) ** 2).sum())
