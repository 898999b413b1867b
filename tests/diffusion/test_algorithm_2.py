"""The spine's sampler against analytic truth: for Gaussian data everything is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.errors import InputError
from edm_ray.seeding import image_noise

STD = 0.7


def gaussian(x, sigma, class_labels=None):
    """The ideal denoiser of N(0, STD^2) data."""
    return x * STD**2 / (STD**2 + sigma.reshape(-1, 1, 1, 1) ** 2)


def _latents(count=64):
    return image_noise(torch.arange(count), "latents", (1, 2, 2))(0)


def _error(settings):
    """Against the exact trajectory: x(0) = x(T) STD / sqrt(STD^2 + T^2)."""
    latents = _latents(8)
    exact = latents * 80.0 * STD / math.sqrt(STD**2 + 80.0**2)
    return float((sample(gaussian, latents, settings) - exact).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_solver_converges_with_its_order(solver, order):
    steps = [64, 128, 256, 512]
    errors = [_error(sampler(num_steps=n, solver=solver, sigma_min=0.05)) for n in steps]
    # The last step to zero is Euler and of fixed length, so its error is taken off.
    floor = _error(sampler(num_steps=8192, solver="heun", sigma_min=0.05))
    slope = np.polyfit(np.log(steps), np.log(np.abs(np.array(errors) - floor)), 1)[0]
    assert -slope == pytest.approx(order, abs=0.15)


def test_the_sampler_is_algorithm_2_as_printed():
    """An independent NumPy version, line by line, agrees to 1e-12."""
    settings = sampler(num_steps=9, s_churn=2.5, s_tmin=0.05, s_tmax=20.0, s_noise=1.007)
    latents = _latents(5)
    noise = image_noise(torch.arange(5), "churn", (1, 2, 2))
    n = settings.num_steps
    t = [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)] + [0.0]
    x = latents.numpy() * t[0]
    for i in range(n):
        gamma = min(2.5 / n, math.sqrt(2) - 1) if 0.05 <= t[i] <= 20.0 else 0.0
        hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(hat**2 - t[i] ** 2) * 1.007 * noise(i).numpy()
        d = (x_hat - x_hat * STD**2 / (STD**2 + hat**2)) / hat
        x = x_hat + (t[i + 1] - hat) * d
        if t[i + 1] != 0:
            d2 = (x - x * STD**2 / (STD**2 + t[i + 1] ** 2)) / t[i + 1]
            x = x_hat + (t[i + 1] - hat) * (d + d2) / 2
    assert np.abs(sample(gaussian, latents, settings, noise=noise).numpy() - x).max() < 1e-12


def exact_variance(settings):
    """Variance of Algorithm 2's output on N(0, STD^2) data: the sampler is linear there, step by step."""
    t = settings.time_steps(gaussian).tolist()
    variance = t[0] ** 2
    for i in range(settings.num_steps):
        hat = t[i] * (1 + settings.gamma(t[i]))
        variance += hat**2 - t[i] ** 2
        slope, h = hat / (STD**2 + hat**2), t[i + 1] - hat
        factor = 1 + h * slope
        if t[i + 1] > 0:
            factor = 1 + h / 2 * (slope + factor * t[i + 1] / (STD**2 + t[i + 1] ** 2))
        variance *= factor**2
    return variance


@pytest.mark.parametrize(("num_steps", "s_churn"), [(2, 0.5), (6, 1.0), (12, 4.0), (18, 99.0), (40, 10.0)])
def test_with_churn_the_samples_have_the_variance_of_the_exact_discrete_recursion(num_steps, s_churn):
    settings = sampler(num_steps=num_steps, s_churn=s_churn)
    seeds = torch.arange(20_000)
    latents = image_noise(seeds, "latents", (1, 1, 1))(0)
    out = sample(gaussian, latents, settings, noise=image_noise(seeds, "churn", (1, 1, 1)))
    assert float(out.var()) == pytest.approx(exact_variance(settings), rel=5 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize("s_churn", [0.0, 5.0, 40.0])
def test_the_variance_converges_to_that_of_the_data_as_steps_grow(s_churn):
    steps = (16, 64, 256, 1024)
    errors = [abs(exact_variance(sampler(num_steps=n, s_churn=s_churn)) / STD**2 - 1) for n in steps]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3


def test_without_churn_no_noise_is_drawn():
    def never(step, draw=0):
        raise AssertionError("drawn")

    sample(gaussian, _latents(2), sampler(), noise=never)
    sample(gaussian, _latents(2), sampler(s_churn=5, s_tmin=90, s_tmax=100), noise=never)


def test_churn_without_noise_is_refused():
    with pytest.raises(InputError, match=r"s_churn=5 adds noise"):
        sample(gaussian, _latents(2), sampler(s_churn=5))


def test_equal_samplers_have_equal_effective_settings_and_give_equal_images():
    cap = 18 * (math.sqrt(2) - 1)
    noise = image_noise(torch.arange(3), "churn", (1, 2, 2))
    pairs = [
        (sampler(s_churn=cap), sampler(s_churn=99)),
        (sampler(s_churn=5, s_tmin=90, s_tmax=99), sampler(s_noise=1.5)),
        (sampler(s_churn=5, s_tmin=0.0021), sampler(s_churn=5, s_tmin=0.003)),
    ]
    for a, b in pairs:
        assert a != b and a.effective(gaussian) == b.effective(gaussian)
        assert a.effective(gaussian).effective(gaussian) == a.effective(gaussian)
        images = [sample(gaussian, _latents(3), s, noise=noise) for s in (a, b, a.effective(gaussian))]
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert sampler(s_churn=5).effective(gaussian) != sampler(s_churn=6).effective(gaussian)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"num_steps": 1}, "num_steps=1"),
        ({"s_churn": -1.0}, r"s_churn=-1\.0"),
        ({"s_churn": float("nan")}, "s_churn=nan"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, r"s_tmin=2\.0 is not allowed: at most s_tmax=1\.0"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, r"sigma_min=3\.0"),
        ({"rho": 0.0}, r"rho=0\.0"),
        ({"solver": "magic"}, "solver='magic' is not allowed: euler or heun"),
    ],
)
def test_impossible_settings_are_named_with_what_is_allowed(change, names):
    with pytest.raises(InputError, match=names):
        sampler(**change)


def test_edm_preconditioning_keeps_the_networks_input_and_target_at_unit_variance():
    """Equations 114-144: c_in^2 (sigma^2 + sigma_data^2) = 1, and the effective target has variance 1."""
    seen = {}

    class Network(torch.nn.Module):
        label_dim = 0

        def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
            seen.update(x=x, noise=noise_labels)
            return torch.ones_like(x)

    for sigma in (0.01, 0.5, 30.0):
        denoiser = PRECONDITIONERS["edm"](Network(), sigma_data=0.5)
        x = torch.full((1, 1, 1, 1), 2.0)
        skip = float(denoiser(torch.zeros(1, 1, 1, 1), torch.tensor([sigma])))  # c_out, as F = 1
        both = float(denoiser(x, torch.tensor([sigma])))
        c_out, c_skip, c_in = skip, (both - skip) / 2.0, float(seen["x"]) / 2.0
        assert c_in**2 * (sigma**2 + 0.25) == pytest.approx(1, rel=1e-5)
        target = ((1 - c_skip) ** 2 * 0.25 + c_skip**2 * sigma**2) / c_out**2
        assert target == pytest.approx(1, rel=1e-4)
        assert float(seen["noise"]) == pytest.approx(math.log(sigma) / 4, rel=1e-5, abs=1e-6)
