"""Guidance, analytic denoisers, inversion, Langevin iteration, truncation error."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from edm_ray.diffusion.analysis.analytic import GaussianMixture, IdealDenoiser
from edm_ray.diffusion.analysis.inversion import invert, reconstruct, round_trip_errors
from edm_ray.diffusion.analysis.langevin import langevin
from edm_ray.diffusion.analysis.truncation import truncation_errors
from edm_ray.diffusion.denoiser import AtLevel, Guided, as_denoiser
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.errors import InputError
from edm_ray.seeding import image_noise


def test_inversion_finds_the_exact_latent_and_its_error_falls_with_order_2(gaussian, latents) -> None:
    steps, errors = [64, 128, 256], []
    for n in steps:
        settings = sampler(num_steps=n, rho=3.0, sigma_min=0.02, sigma_max=10.0)
        images = gaussian.solve(latents * 10.0, 10.0, 0.02)
        errors.append((invert(gaussian, images, settings) - latents).abs().max().item())
    assert errors[-1] < 1e-3
    assert abs(-np.polyfit(np.log(steps), np.log(errors), 1)[0] - 2) < 0.25


def test_round_trip_error_falls_with_the_number_of_steps(gaussian, latents) -> None:
    errors = round_trip_errors(gaussian, latents, sampler(rho=3.0, schedule="ve"), [16, 32, 64, 128])
    values = list(errors.values())
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 16
    euler = round_trip_errors(gaussian, latents, sampler(rho=3.0, solver="euler"), [64])
    assert errors[64] < euler[64]


def test_inversion_refuses_solvers_that_do_not_follow_the_ode(gaussian, latents) -> None:
    for function in (invert, reconstruct):
        with pytest.raises(InputError, match=r"sampler\.solver='dpmpp_2m'"):
            function(gaussian, latents, sampler(solver="dpmpp_2m"))


def test_langevin_iteration_has_the_variance_of_its_recursion(gaussian) -> None:
    sigma, gamma, seeds = 0.4, 0.3, torch.arange(64)
    x = gaussian.mean + 0.1 * image_noise(seeds, "latents", (1, 32, 32))(0)
    for s_noise in (1.0, 1.05):
        out = langevin(gaussian, x, sigma, 20, image_noise(seeds, "churn", (1, 32, 32)), gamma=gamma, s_noise=s_noise)
        raised, h = sigma * (1 + gamma), -gamma * sigma
        first, second = raised / (0.25 + raised**2), sigma / (0.25 + sigma**2)
        factor, variance = 1 + h / 2 * (first + second * (1 + h * first)), 0.01
        for _ in range(20):
            variance = (variance + (raised**2 - sigma**2) * s_noise**2) * factor**2
        assert out.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / out.numel()))
        if s_noise == 1:
            assert variance == pytest.approx(0.25 + sigma**2, rel=0.05)


def test_langevin_refuses_bad_input(gaussian, latents) -> None:
    for wrong in ({"sigma": -1.0}, {"gamma": math.nan}, {"steps": -1}, {"s_noise": math.inf}):
        with pytest.raises(InputError, match=f"langevin.{next(iter(wrong))}="):
            langevin(gaussian, latents, **{"sigma": 1.0, "steps": 1, "noise": lambda i: latents, **wrong})


def test_a_mixture_of_one_is_the_gaussian(gaussian, latents) -> None:
    means = torch.full((1, 3, 2, 2), 0.3)
    mixture = GaussianMixture(means, torch.tensor([0.5]), torch.tensor([1.0]))
    sigma = torch.tensor([0.3, 4.0], dtype=torch.float64)
    assert torch.allclose(mixture(latents, sigma), gaussian(latents, sigma), atol=1e-7)


def test_the_mixture_denoiser_is_the_gradient_of_the_log_density(latents) -> None:
    """Tweedie: D = x + sigma^2 grad log p(x; sigma), the gradient taken by autograd."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 3, 2, 2, dtype=torch.float64, generator=generator)
    sds, weights = torch.tensor([0.2, 0.5, 0.1]).double(), torch.tensor([0.5, 0.2, 0.3]).double()
    x = latents.clone().requires_grad_()
    var = sds**2 + 0.6**2
    distance = ((x[:, None] - means[None]) ** 2).flatten(2).sum(2)
    log = (weights.log() - distance / (2 * var) - 6 * var.log()).logsumexp(1).sum()
    (gradient,) = torch.autograd.grad(log, x)
    expected = latents + 0.36 * gradient
    actual = GaussianMixture(means, sds, weights)(latents, torch.tensor(0.6, dtype=torch.float64))
    assert torch.allclose(actual, expected, atol=1e-10)


def test_the_ideal_denoiser_is_a_mixture_of_points_whatever_the_chunk(latents) -> None:
    points = torch.randn(10, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.05, 2.0], dtype=torch.float64)
    expected = GaussianMixture(points, torch.zeros(10), torch.ones(10))(latents, sigma)
    for chunk in (1, 3, 100):
        assert torch.allclose(IdealDenoiser(points, chunk)(latents, sigma), expected, atol=1e-12)


def test_samples_of_the_ideal_denoiser_are_images_of_the_data() -> None:
    points = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    latents = image_noise(torch.arange(64), "latents", (3, 4, 4))(0)
    x = sample(IdealDenoiser(points), latents, sampler(num_steps=40))
    distance, nearest = torch.cdist(x.flatten(1), points.flatten(1)).min(1)
    assert distance.max() < 0.02
    assert len(nearest.unique()) == 8


def test_guidance_extrapolates_inside_its_interval_only(gaussian, latents) -> None:
    other = type(gaussian)(mean=-0.2)
    denoiser = Guided(gaussian, other, weight=2.5, interval=(0.5, 3.0))
    for level in (0.1, 0.5, 1.0, 3.0, 10.0):
        sigma = torch.full((2,), level, dtype=torch.float64)
        main, guide = gaussian(latents, sigma), other(latents, sigma)
        expected = guide + 2.5 * (main - guide) if 0.5 <= level <= 3.0 else main
        assert torch.allclose(denoiser(latents, sigma), expected)
        assert torch.allclose(AtLevel(denoiser)(latents, level), expected)


def test_the_guide_is_called_in_its_interval_only(gaussian, latents) -> None:
    other, settings = type(gaussian)(mean=-0.2), sampler(solver="euler")
    sample(Guided(gaussian, other, weight=2, interval=(0.5, 3)), latents, settings)
    assert other.calls == sum(0.5 <= level <= 3 for level in settings.noise_levels(gaussian))
    assert gaussian.calls == 18


def test_a_classifier_free_guide_gets_no_labels_an_autoguide_the_same(latents) -> None:
    seen: list[object] = []

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, labels: object = None) -> torch.Tensor:
        seen.append(labels)
        return x

    labels = torch.eye(2)
    for guide in (None, denoiser):
        AtLevel(Guided(denoiser, guide, weight=2), labels)(latents, 1.0)
    assert [item is labels for item in seen] == [True, False, True, True]


def test_bad_guidance_is_refused() -> None:
    for wrong in ({"weight": math.nan}, {"interval": (2.0, 1.0)}, {"interval": (-1.0, 1.0)}):
        with pytest.raises(InputError, match=f"guidance.{next(iter(wrong))}="):
            Guided(lambda x, sigma, labels: x, **wrong)


def test_truncation_error_is_the_distance_from_the_exact_trajectory(gaussian, latents) -> None:
    from edm_ray.diffusion.noise import Linear, Path
    from edm_ray.diffusion.samplers.heun import ode_step

    settings = sampler(num_steps=10)
    levels, x = settings.noise_levels(gaussian), latents * 80.0
    measured = truncation_errors(gaussian, latents, settings, substeps=40)
    assert [sigma for sigma, _ in measured] == levels[:-1]
    for (start, error), end in zip(measured, levels[1:], strict=True):
        state = gaussian.solve(x, 80.0, start)
        step = ode_step(AtLevel(as_denoiser(gaussian)), state, start, end, Path(Linear()))
        exact = (step - gaussian.solve(x, 80.0, end)).square().mean().sqrt().item()
        assert error == pytest.approx(exact, rel=0.02, abs=1e-6)


@pytest.mark.parametrize(
    ("solver", "power"),
    [
        ("euler", 2),
        ("heun", 3),
        ("euler_maruyama", 2),
        ("predictor_corrector", 2),
        ("dpmpp_2m", 3),
        ("dpmpp_3m_sde", 4),
    ],
)
def test_truncation_errors_of_every_solver_fall_with_the_power_of_its_order(latents, solver, power) -> None:
    """A step of half the length errs by 2^-power as much: at noise level 1, far from the first steps.

    On a mixture, since on Gaussian data D does not change along the drift of the SDE: there its samplers are exact.
    """
    means = torch.stack([torch.full((3, 2, 2), -0.4), torch.full((3, 2, 2), 0.5)]).double()
    mixture = GaussianMixture(means, torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.6]))
    errors = []
    for steps in (41, 81, 161):
        settings = sampler(num_steps=steps, solver=solver, discretization="ve", sigma_min=0.1, sigma_max=10.0)
        measured = truncation_errors(mixture, latents, settings, substeps=4)
        assert len(measured) == steps - 1
        errors.append({round(math.log10(sigma), 9): error for sigma, error in measured}[0.0])
    slope = -np.polyfit(np.log([40, 80, 160]), np.log(errors), 1)[0]
    assert slope == pytest.approx(power, abs=0.25), errors


def test_with_churn_the_step_that_is_measured_is_longer(gaussian, latents) -> None:
    plain, churned = (
        truncation_errors(gaussian, latents, sampler(num_steps=20, s_churn=churn)) for churn in (0.0, 99.0)
    )
    levels = sampler(num_steps=20).noise_levels(gaussian)[:-1]
    assert [sigma for sigma, _ in churned] == pytest.approx([level * math.sqrt(2) for level in levels])
    assert all(more > less for (_, more), (_, less) in zip(churned[3:], plain[3:], strict=True))


def test_steps_of_restarts_are_measured_and_what_has_no_fixed_steps_is_refused(gaussian, latents) -> None:
    restarted = truncation_errors(gaussian, latents, sampler(num_steps=9, restarts=((0.3, 5.0, 3, 2),)))
    assert len(restarted) == 8 + 3
    with pytest.raises(InputError, match="rk45"):
        truncation_errors(gaussian, latents, sampler(solver="rk45"))
    with pytest.raises(InputError, match="substeps=1 "):
        truncation_errors(gaussian, latents, sampler(), substeps=1)


_FULL_SIZE = """
import resource, torch
from edm_ray.diffusion.analysis.analytic import IdealDenoiser
images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
torch.cdist(torch.zeros(2, 8), torch.zeros(2, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
D = IdealDenoiser(images)(images[:2].double() + 0.1, torch.tensor(1.0))
assert torch.allclose(D, images[:2].double())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_ideal_denoiser_of_50000_images_needs_little_beside_the_images():
    # In float64 at once they would be 1.2 GB.
    result = subprocess.run([sys.executable, "-c", _FULL_SIZE], capture_output=True, text=True, check=True, timeout=120)
    assert int(result.stdout) / 1024 < 200, f"{int(result.stdout) / 1024:.0f} MiB"


def test_class_labels_out_of_range_name_the_value_and_the_range():
    assert one_hot_labels(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=rf"class_labels={wrong} is not allowed: a class in 0\.\.2"):
            one_hot_labels(torch.tensor([0, wrong]), 3)
