"""The effective form of settings: equal if and only if the images are, to the bit."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch

from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.diffusion.samplers import SOLVERS, Sampler, sample, sampler
from edm_ray.diffusion.samplers.base import settings as settings_of
from edm_ray.errors import InputError
from edm_ray.seeding import image_noise

SHAPE = (1, 2, 2)
VALUES: dict[str, tuple[Any, ...]] = {
    "num_steps": (3, 5, 7, 10),
    "sigma_min": (None, 0.002, 0.02, 0.1),
    "sigma_max": (None, 80.0, 81.0, 10.0, 9.9),
    "rho": (7.0, 3.0),
    "solver": ("heun", "euler", "dpmpp_2m", "dpmpp_3m_sde", "rk45", "euler_maruyama", "predictor_corrector")
    + ("ipndm", "deis", "dpmpp_3m", "dpmpp_2m_sde", "unipc", "sa_solver", "dpm_2"),
    "order": (2, 3, 4),
    "variant": ("bh1", "bh2"),
    "afs": (False, True),
    "lower_order_final": (False, True),
    "eta": (1.0, 0.5),
    "tau": (1.0, 0.0, 0.7),
    "tau_min": (0.0, 0.05, 0.06, 100.0),
    "tau_max": (math.inf, 200.0, 5.0, 5.2),
    "alpha": (1.0, 0.5),
    "discretization": ("edm", "vp", "ve", "iddpm"),
    "schedule": ("linear", "vp", "ve"),
    "scaling": ("none", "vp"),
    "s_churn": (0.0, 1.0, 7 * (math.sqrt(2) - 1), 5.0, 50.0),
    "s_tmin": (0.0, 0.05, 0.06, 0.5, 100.0),
    "s_tmax": (math.inf, 200.0, 50.0, 30.0, 0.05),
    "s_noise": (1.0, 1.007),
    "churn_bins": ((), ((0.05, 50.0, 1.0),), ((0.0, 0.5, 1.0), (0.5, 90.0, 1.0)), ((0.0, 0.5, 5.0), (3.0, 9.0, 1.0))),
    "restarts": ((), ((0.3, 5.0, 2, 2),), ((0.31, 5.0, 2, 1), (0.29, 5.0, 2, 1)), ((5.0, 5.1, 2, 1),)),
    "epsilon_s": (1e-3, 2e-3),
    "c_1": (0.001, 0.002),
    "c_2": (0.008, 0.01),
    "num_train_steps": (1000, 500),
    "snr": (0.16, 0.2),
    "tolerance": (1e-2, 3e-3),
    "guidance": (1.0, 1.0, 2.0, 3.0),
    "guidance_min": (0.0, 0.05, 0.06, 95.0),
    "guidance_max": (math.inf, 5.0, 5.2, 100.0),
}


def some_settings(count: int, seed: int) -> list[tuple[Sampler, Sampler]]:
    """Pairs that differ in one to three fields, from a fixed seed; a pair that is refused is drawn again."""
    draw, pairs = random.Random(seed), []
    while len(pairs) < count:
        base = {name: draw.choice(values) for name, values in VALUES.items()}
        if base["churn_bins"]:
            base["s_churn"] = 0.0
        if base["solver"] not in ("heun", "euler"):
            base |= {"s_churn": 0.0, "churn_bins": (), "restarts": ()}
        other = dict(base)
        if base["solver"] == "rk45" or base["alpha"] != 1:
            base["guidance"] = 1.0
        for name in draw.sample(sorted(VALUES), draw.choice((1, 1, 2, 3))):
            other[name] = draw.choice(VALUES[name])
        try:
            pair = own(base), own(other)
            if not any(
                each.guidance != 1 and (each.solver == "rk45" or getattr(each, "alpha", 1) != 1) for each in pair
            ):
                pairs.append(pair)
        except InputError:
            continue
    return pairs


def own(flat: dict[str, Any]) -> Sampler:
    """A sampler of those settings that its solver has. Churn of a solver without is refused, so it is drawn again."""
    names = {"solver", *(each.name for each in settings_of(SOLVERS[flat["solver"]]))}
    if not names >= {"s_churn"} and (flat["s_churn"] or flat["churn_bins"] or flat["restarts"]):
        raise InputError("churn")
    return sampler(**{name: value for name, value in flat.items() if name in names})


def images(denoiser, settings: Sampler, guide: Any = None) -> torch.Tensor:
    seeds = torch.arange(2)
    noise = image_noise(seeds, "churn", SHAPE)
    return sample(denoiser, image_noise(seeds, "latents", SHAPE)(0), settings, noise=noise, guide=guide)


def test_effective_forms_are_equal_if_and_only_if_the_images_are(gaussian) -> None:
    guide = type(gaussian)(mean=-0.2)
    same = different = 0
    for a, b in some_settings(250, seed=0):
        try:
            forms = a.effective(gaussian), b.effective(gaussian)
        except InputError:  # no vp schedule with this range and epsilon_s
            continue
        made = images(gaussian, a, guide), images(gaussian, b, guide)
        assert torch.equal(*made) == (forms[0] == forms[1]), (a, b)
        for form, image in zip(forms, made, strict=True):
            assert torch.equal(images(gaussian, form, guide), image), form
            assert form.effective(gaussian) == form
        same, different = same + (a != b and forms[0] == forms[1]), different + (forms[0] != forms[1])
    assert same > 40 and different > 40, (same, different)


def test_on_a_network_with_a_grid_equal_forms_give_equal_images() -> None:
    network = PRECONDITIONERS["iddpm"](lambda_network())
    guide = PRECONDITIONERS["edm"](lambda_network())
    equal = 0
    for a, b in some_settings(60, seed=1):
        if "rk45" in (a.solver, b.solver):
            continue  # a network's steps in c_noise make its adaptive steps tiny
        try:
            forms = a.effective(network), b.effective(network)
        except InputError:
            continue
        for settings, form in zip((a, b), forms, strict=True):
            assert torch.equal(images(network, settings, guide), images(network, form, guide)), settings
            assert form.effective(network) == form
        if a != b and forms[0] == forms[1]:
            equal += 1
            assert torch.equal(images(network, a, guide), images(network, b, guide))
    assert equal > 5


def lambda_network() -> torch.nn.Module:
    class Network(torch.nn.Module):
        label_dim = 0

        def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
            return x * 0.9 + noise_labels.reshape(-1, 1, 1, 1) * 1e-3

    return Network()


def test_one_bin_is_the_window_and_neighbours_alike_are_one(gaussian) -> None:
    window = sampler(s_churn=7, s_tmin=0.1, s_tmax=5.0).effective(gaussian)
    for bins in (((0.1, 5.0, 7.0),), ((0.0, 0.1, 0.0), (0.1, 1.0, 7), (1.0, 5.0, 7), (90.0, 99.0, 3))):
        assert sampler(churn_bins=bins).effective(gaussian) == window
    two = sampler(churn_bins=((0.1, 1.0, 3.0), (2.0, 5.0, 7.0))).effective(gaussian)
    assert [churn for _, _, churn in two.churn_bins] == [3.0, 7.0] and two.s_churn == 0


def test_restarts_are_named_by_their_time_step_and_idle_ones_are_left_out(gaussian) -> None:
    one = sampler(restarts=((0.30, 5.0, 4, 3),))
    for other in (((0.29, 5.0, 4, 3),), ((0.3, 5.0, 4, 1), (0.31, 5.0, 4, 2)), ((0.3, 5.0, 4, 3), (8.3, 8.35, 4, 1))):
        assert sampler(restarts=other).effective(gaussian) == one.effective(gaussian)
    idle = sampler(restarts=((8.3, 8.35, 4, 1),), s_noise=2.0)
    assert idle.effective(gaussian) == sampler().effective(gaussian)
    images(gaussian, idle)
    sample(gaussian, torch.zeros(1, *SHAPE), idle)  # and needs no noise


def test_a_capped_s_churn_is_any_above_it_for_every_number_of_steps(gaussian) -> None:
    for steps in range(2, 60):
        cap, above = (sampler(num_steps=steps, s_churn=churn) for churn in (steps * (math.sqrt(2) - 1), 1e3))
        assert cap.gamma(1.0) == above.gamma(1.0) == math.sqrt(2) - 1
        assert cap.effective(gaussian) == above.effective(gaussian)


@pytest.mark.parametrize("schedule", ["linear", "vp", "ve"])
def test_churn_at_a_window_edge_that_is_a_time_step_acts_whatever_the_schedule(gaussian, schedule) -> None:
    """Time and back changes the last bits of a noise level; that must not decide."""
    levels = sampler(schedule=schedule)
    at = dataclasses.replace(levels, s_churn=5, s_tmin=0.002, s_tmax=80.0)
    everywhere = dataclasses.replace(levels, s_churn=5)
    window = at.effective(gaussian)
    assert torch.equal(images(gaussian, window), images(gaussian, everywhere))
