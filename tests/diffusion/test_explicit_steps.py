"""Explicit noise levels (sigmas) and churn by step (gammas) are the discretizations and S_churn, written out."""

from __future__ import annotations

import math

import pytest
import torch

from edm_ray.diffusion.samplers import SOLVERS, Euler, Heun, Sampler, sample, sampler
from edm_ray.errors import InputError
from edm_ray.seeding import image_noise

FIXED_STEPS = [name for name in SOLVERS if name != "rk45" and SOLVERS[name].__module__.startswith("edm_ray.")]


def _sample(denoiser, latents, settings: Sampler) -> torch.Tensor:
    noise = image_noise(torch.arange(len(latents)), "churn", tuple(latents.shape[1:]))
    return sample(denoiser, latents, settings, noise=noise)


@pytest.mark.parametrize("discretization", ["edm", "vp", "ve", "iddpm"])
@pytest.mark.parametrize("solver", FIXED_STEPS)
def test_the_levels_of_a_discretization_written_out_give_its_images(gaussian, latents, solver, discretization):
    named = sampler(solver=solver, num_steps=9, discretization=discretization)
    explicit = sampler(solver=solver, sigmas=named.noise_levels())
    assert (explicit.num_steps, explicit.nfe) == (9, named.nfe)
    assert torch.equal(_sample(gaussian, latents, explicit), _sample(gaussian, latents, named))


@pytest.mark.parametrize("solver", [Euler, Heun])
def test_the_gammas_of_s_churn_written_out_give_its_images(gaussian, latents, solver):
    named = solver(num_steps=12, s_churn=3, s_tmin=0.05, s_tmax=20, s_noise=1.01)
    levels = named.noise_levels()
    explicit = solver(num_steps=12, s_noise=1.01, gammas=[named.gamma(level) for level in levels])
    assert 0 < sum(gamma > 0 for gamma in explicit.gammas) < 12
    assert torch.equal(_sample(gaussian, latents, explicit), _sample(gaussian, latents, named))


def test_gammas_act_at_their_own_steps_only(gaussian, latents):
    """The variance that a step adds is that of going from sigma to sigma (1 + gamma), in two steps written out."""
    settings = Euler(sigmas=(2.0, 1.0), gammas=(0.0, 0.25))
    noise = image_noise(torch.arange(len(latents)), "churn", tuple(latents.shape[1:]))

    def step(x: torch.Tensor, start: float, end: float) -> torch.Tensor:
        return x + (end - start) / start * (x - gaussian(x, torch.tensor([start], dtype=torch.float64)))

    x = step(latents * 2, 2.0, 1.0) + math.sqrt(1.25**2 - 1) * noise(1)
    assert torch.allclose(sample(gaussian, latents, settings, noise=noise), step(x, 1.25, 0.0), atol=1e-14)


def test_the_effective_form_gives_the_same_images_and_drops_what_does_not_act(gaussian, latents):
    settings = Heun(sigmas=(20, 5, 1, 0.1), gammas=(0, 0.2, 0, 0), rho=3, discretization="ve")
    effective = settings.effective(gaussian)
    assert (effective.rho, effective.discretization, effective.gammas) == (7.0, "edm", (0, 0.2, 0, 0))
    assert torch.equal(_sample(gaussian, latents, effective), _sample(gaussian, latents, settings))
    assert Heun(sigmas=(20, 1), gammas=(0, 0)).effective(gaussian) == Heun(sigmas=(20, 1)).effective(gaussian)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sigmas": (1.0, 2.0)}, "sampler.sigmas=.*descending"),
        ({"sigmas": (1.0,)}, "two noise levels or more"),
        ({"sigmas": (1.0, 0.0)}, "greater than 0"),
        ({"sigmas": (2.0, 1.0), "num_steps": 3}, "sampler.num_steps=3.*2, the number of sigmas"),
        ({"sigmas": (2.0, 1.0), "sigma_max": 3.0}, "none with sigmas"),
        ({"num_steps": 3, "gammas": (0.1, 0.1)}, "3 numbers, one a step"),
        ({"num_steps": 2, "gammas": (0.0, 0.5)}, r"from 0 to sqrt\(2\) - 1"),
        ({"num_steps": 2, "gammas": (0.0, 0.1), "s_churn": 1}, "0 with gammas"),
        ({"num_steps": 2, "gammas": (0.0, 0.1), "churn_bins": ((0, 1, 2),)}, "empty with gammas"),
    ],
)
def test_what_is_not_allowed_is_refused_in_words(fields, says):
    with pytest.raises(InputError, match=says):
        Heun(**fields)


def test_levels_that_a_model_does_not_know_are_refused(gaussian, latents):
    gaussian.sigma_max = 10.0
    with pytest.raises(InputError, match="the model's range"):
        sample(gaussian, latents, Heun(sigmas=(20, 1)))
