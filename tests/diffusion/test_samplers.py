"""Samplers against closed forms of Gaussian data; what they ask of noise and of the denoiser; bad settings."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.errors import InputError
from edm_ray.seeding import image_noise


def keyed(count: int, shape: tuple[int, ...] = (3, 2, 2)):
    return image_noise(torch.arange(count), "churn", shape)


def test_edm_choices_are_algorithm_2(gaussian, latents) -> None:
    settings = sampler(num_steps=18, s_churn=30, s_tmin=0.01, s_tmax=1, s_noise=1.007)
    t = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)] + [0.0]
    noise, x = keyed(2), latents * t[0]
    for i in range(18):
        gamma = min(30 / 18, math.sqrt(2) - 1) if 0.01 <= t[i] <= 1 else 0.0
        hat = t[i] * (1 + gamma)
        x = x + math.sqrt(hat**2 - t[i] ** 2) * 1.007 * noise(i)
        d = (x - gaussian(x, torch.tensor([hat], dtype=torch.float64))) / hat
        following = x + (t[i + 1] - hat) * d
        if i < 17:
            d2 = (following - gaussian(following, torch.tensor([t[i + 1]], dtype=torch.float64))) / t[i + 1]
            following = x + (t[i + 1] - hat) * (d + d2) / 2
        x = following
    assert (sample(gaussian, latents, settings, noise=noise) - x).abs().max() < 1e-12


@pytest.mark.parametrize("solver,order", [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(gaussian, latents, solver, order) -> None:
    steps, errors = [64, 128, 256], []
    for n in steps:
        settings = sampler(num_steps=n, solver=solver, sigma_min=0.1, sigma_max=10.0)
        x = sample(gaussian, latents, settings)
        exact = gaussian.solve(latents * 10.0, 10.0, 0.1)
        last = gaussian(exact, torch.tensor([0.1], dtype=torch.float64))
        errors.append((x - last).abs().max().item())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2


def test_a_third_order_multistep_without_noise_errs_by_the_fourth_power_of_the_step(gaussian, latents) -> None:
    from edm_ray.diffusion.samplers.dpmpp_3m import exponential_step

    widths, errors = [0.2, 0.1, 0.05], []
    for h in widths:
        start = 0.7
        # Uneven history, exact: two steps of width 1.3 h and 0.8 h before this one.
        before = [start, start * math.exp(1.3 * h), start * math.exp(2.1 * h)]
        states = [gaussian.solve(latents, 1.0, level) for level in before]
        values = [gaussian(x, torch.tensor([v], dtype=torch.float64)) for x, v in zip(states, before)]
        x = exponential_step(states[0], values, [1.3 * h, 0.8 * h], h, eta=0.0)
        errors.append((x - gaussian.solve(latents, 1.0, start * math.exp(-h))).abs().max().item())
    assert abs(np.polyfit(np.log(widths), np.log(errors), 1)[0] - 4) < 0.25


@pytest.mark.parametrize("schedule,scaling", [("linear", "none"), ("vp", "vp"), ("ve", "none")])
def test_rk45_follows_the_exact_trajectory(gaussian, latents, schedule, scaling) -> None:
    settings = sampler(solver="rk45", schedule=schedule, scaling=scaling, tolerance=1e-8, sigma_min=0.02)
    exact = gaussian.solve(latents * 80.0, 80.0, 0.02)
    last = exact / 1.0
    last = gaussian(last, torch.tensor([0.02], dtype=torch.float64))
    tolerance = 1e-5 if schedule == "linear" else 1e-3
    assert (sample(gaussian, latents, settings) - last).abs().max() < tolerance


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize("churn", [0.0, 5.0, 1000.0])
def test_variance_obeys_the_exact_discrete_recursion(gaussian, solver, churn) -> None:
    """Steps are affine in x for Gaussian data, so the variance after each is known exactly for this N and S_churn."""
    n, sd = 12, 0.5
    settings = sampler(num_steps=n, s_churn=churn, solver=solver)
    t = settings.time_steps(gaussian).tolist()
    variance = t[0] ** 2
    for i in range(n):
        hat = t[i] * (1 + min(churn / n, math.sqrt(2) - 1))
        variance += hat**2 - t[i] ** 2
        slope, h = hat / (sd**2 + hat**2), t[i + 1] - hat
        factor = 1 + h * slope
        if solver == "heun" and i < n - 1:
            factor = 1 + h / 2 * (slope + t[i + 1] / (sd**2 + t[i + 1] ** 2) * (1 + h * slope))
        variance *= factor**2
    seeds = torch.arange(400)
    x = sample(
        gaussian,
        image_noise(seeds, "latents", (1, 16, 16))(0),
        settings,
        noise=image_noise(seeds, "churn", (1, 16, 16)),
    )
    count = x.numel()
    assert abs(x.var().item() / variance - 1) < 5 * math.sqrt(2 / count)


@pytest.mark.parametrize(
    "change",
    [
        {"s_churn": 40.0},
        {"churn_bins": ((0.0, 1.0, 30.0), (1.0, 80.0, 10.0))},
        {"restarts": ((0.3, 5.0, 20, 2),)},
        {"solver": "dpmpp_2m"},
        {"solver": "dpmpp_3m_sde"},
        {"solver": "euler_maruyama", "num_steps": 1500, "rho": 3.0},
        {"solver": "euler_maruyama", "num_steps": 1500, "schedule": "vp", "scaling": "vp", "discretization": "vp"},
        {"solver": "predictor_corrector", "num_steps": 400, "snr": 0.02},
    ],
)
def test_samplers_reproduce_mean_and_spread_of_the_data_with_many_steps(gaussian, change) -> None:
    settings = sampler(**{"num_steps": 128, **change})
    seeds = torch.arange(64)
    noise = image_noise(seeds, "churn", (1, 8, 8))
    x = sample(gaussian, image_noise(seeds, "latents", (1, 8, 8))(0), settings, noise=noise)
    assert abs(x.mean().item() - 0.3) < 0.04
    assert abs(x.std().item() / 0.5 - 1) < 0.05


def test_churn_bins_with_one_bin_are_the_churn_window(gaussian, latents) -> None:
    window = sampler(s_churn=10, s_tmin=0.1, s_tmax=5.0)
    bins = sampler(churn_bins=((0.1, 5.0, 10.0),))
    assert torch.equal(*(sample(gaussian, latents, s, noise=keyed(2)) for s in (window, bins)))


def test_no_noise_is_drawn_at_gamma_zero(gaussian, latents) -> None:
    asked = []

    def noise(step: int, draw: int = 0) -> torch.Tensor:
        asked.append(step)
        return torch.zeros_like(latents)

    settings = sampler(s_churn=10, s_tmin=0.1, s_tmax=5.0)
    sample(gaussian, latents, settings, noise=noise)
    assert asked == [i for i, level in enumerate(settings.noise_levels(gaussian)) if 0.1 <= level <= 5.0]


@pytest.mark.parametrize(
    "solver", ["heun", "euler", "dpmpp_2m", "dpmpp_3m_sde", "euler_maruyama", "predictor_corrector"]
)
def test_nfe_is_the_number_of_calls(gaussian, latents, solver) -> None:
    restarts = ((0.3, 5.0, 3, 2),) if solver in ("heun", "euler") else ()
    settings = sampler(solver=solver, restarts=restarts)
    sample(gaussian, latents, settings, noise=keyed(2))
    assert gaussian.calls == settings.nfe


@pytest.mark.parametrize(
    "solver", ["heun", "dpmpp_2m", "dpmpp_3m_sde", "euler_maruyama", "predictor_corrector", "rk45"]
)
def test_an_image_does_not_depend_on_its_batch(gaussian, latents, solver) -> None:
    settings = sampler(solver=solver, s_churn=5.0 if solver == "heun" else 0.0)
    both = sample(gaussian, latents, settings, noise=keyed(2))
    assert torch.equal(sample(gaussian, latents[:1], settings, noise=keyed(1)), both[:1])


def test_effective_settings_that_are_equal_give_equal_images(gaussian, latents) -> None:
    base = sampler(s_churn=1e3, s_tmin=0.05, s_tmax=2.0)
    same = dataclasses.replace(base, s_churn=base.churn_cap, s_tmin=0.0501, c_1=0.5, epsilon_s=0.1)
    assert base.effective(gaussian) == same.effective(gaussian)
    assert base.effective(gaussian).effective(gaussian) == base.effective(gaussian)
    assert torch.equal(*(sample(gaussian, latents, s, noise=keyed(2)) for s in (base, base.effective(gaussian))))
    outside = sampler(s_churn=10, s_tmin=500, s_tmax=600)
    assert outside.effective(gaussian) == sampler().effective(gaussian)


def test_steps_are_on_the_grid_of_an_iddpm_network() -> None:
    network = PRECONDITIONERS["iddpm"](torch.nn.Identity())
    levels = sampler().noise_levels(network)
    assert set(levels) <= set(network.u.double().tolist())
    assert levels[0] == pytest.approx(80.2, abs=0.1)


@pytest.mark.parametrize(
    "wrong,field",
    [
        ({"num_steps": 1}, "num_steps"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin"),
        ({"s_churn": -1.0}, "s_churn"),
        ({"s_noise": math.nan}, "s_noise"),
        ({"rho": math.nan}, "rho"),
        ({"solver": "heunn"}, "solver"),
        ({"alpha": 0.0}, "alpha"),
        ({"solver": "dpmpp_2m", "s_churn": 1.0}, "s_churn"),
        ({"churn_bins": ((1.0, 2.0, 1.0), (1.5, 3.0, 1.0))}, "churn_bins"),
        ({"restarts": ((1.0, 0.5, 3, 1),)}, "restarts"),
        ({"epsilon_s": 1.0}, "epsilon_s"),
        ({"s_tmax": math.nan}, "s_tmax"),
        ({"s_tmax": -1.0}, "s_tmax"),
        ({"s_churn": "5"}, "s_churn"),
        ({"num_steps": 18.0}, "num_steps"),
        ({"num_steps": True}, "num_steps"),
        ({"rho": None}, "rho"),
        ({"sigma_min": math.nan}, "sigma_min"),
        ({"churn_bins": ((1.0, 2.0),)}, "churn_bins"),
        ({"churn_bins": 3.0}, "churn_bins"),
        ({"restarts": ((0.3, 5.0, 2.5, 1),)}, "restarts"),
        ({"restarts": ((0.3, math.inf, 3, 1),)}, "restarts"),
    ],
)
def test_bad_settings_are_refused_by_field_and_value(wrong, field) -> None:
    with pytest.raises(InputError, match=rf"sampler\.{field}=.* is not allowed: "):
        sampler(**wrong)


def test_numbers_of_other_libraries_and_lists_are_taken_as_plain_ones() -> None:
    plain = sampler(num_steps=20, s_noise=1.5, churn_bins=((0.0, 1.0, 3.0),), restarts=((0.5, 5.0, 3, 1),))
    given = sampler(num_steps=np.int64(20), s_noise=np.float32(1.5), churn_bins=[[0, 1, 3]], restarts=[(0.5, 5, 3, 1)])
    assert given == plain and repr(given) == repr(plain) and hash(given) == hash(plain)


def test_the_default_range_of_vp_begins_at_epsilon_s(gaussian) -> None:
    for epsilon_s in (1e-3, 1e-2):
        low, high = sampler(discretization="vp", epsilon_s=epsilon_s).sigma_range(gaussian)
        assert low == pytest.approx(math.sqrt(math.exp(9.95 * epsilon_s**2 + 0.1 * epsilon_s) - 1), rel=1e-9)
        assert high == pytest.approx(152.167, rel=1e-5)


def test_what_a_network_does_not_know_is_refused(gaussian) -> None:
    gaussian.sigma_min, gaussian.sigma_max = 0.01, 50.0
    with pytest.raises(InputError, match=r"sampler\.sigma_min=60\.0 is not allowed: less than sigma_max=50\.0"):
        sampler(sigma_min=60.0).effective(gaussian)
    with pytest.raises(InputError, match=r"sampler\.restarts=.* is not allowed: high at most 50\.0"):
        sampler(restarts=((0.3, 60.0, 3, 1),)).effective(gaussian)


def test_bad_calls_are_refused(gaussian, latents) -> None:
    with pytest.raises(InputError, match=r"noise=\(1, 3, 2, 2\) is not allowed"):  # it would be that of all images
        sample(gaussian, latents, sampler(s_churn=5), noise=keyed(1))
    with pytest.raises(InputError, match=r"the denoiser gave \(2, 1, 2, 2\)"):
        sample(lambda x, sigma, labels: gaussian(x, sigma)[:, :1], latents, sampler())
    with pytest.raises(InputError, match="latents"):
        sample(gaussian, latents[0], sampler())
    with pytest.raises(InputError, match="class_labels"):
        sample(gaussian, latents, sampler(), class_labels=torch.zeros(3, 2))
    for settings in (sampler(s_churn=1), sampler(solver="dpmpp_3m_sde")):
        with pytest.raises(InputError, match="pass noise="):
            sample(gaussian, latents, settings)
    with pytest.raises(InputError, match="num_steps=1000"):
        sampler(num_steps=1000, discretization="iddpm").time_steps(gaussian)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 10**9},
        {"num_train_steps": 10**9},
        {"restarts": ((0.1, 1.0, 10**9, 1),)},
        {"restarts": ((0.1, 1.0, 2, 10**9),)},
        {"sigmas": tuple(float(n) for n in range(20_000, 0, -1))},
    ],
)
def test_more_steps_than_memory_holds_are_refused_before_any_level_is_made(changes):
    with pytest.raises(InputError, match=r"sampler\.\w+=.* is not allowed"):
        sampler(**changes)
