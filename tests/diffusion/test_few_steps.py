"""Few-step solvers: equal to NumPy versions of their papers, orders of convergence, cost, noise, forms, refusals."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from edm_ray.diffusion.analysis.truncation import truncation_errors
from edm_ray.diffusion.denoiser import Guided
from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.diffusion.samplers import SOLVERS as CLASSES
from edm_ray.diffusion.samplers import DPMpp2M, Euler, Sampler, UniPC, sample, sampler, with_changes
from edm_ray.diffusion.samplers.adams import exponential_moments, weights
from edm_ray.errors import InputError
from edm_ray.seeding import image_noise
from tests.diffusion.numpy_multistep import SOLVERS
from tests.diffusion.two_modes import MODE, SD, TwoModes, denoise, trajectory

Flat = dict[str, Any]
SHAPE = (3, 2, 2)
NOISE = image_noise(torch.arange(2), "churn", SHAPE)
LEVELS = {
    "edm": {},
    "rho 3": {"rho": 3.0, "sigma_min": 0.02},
    "vp": {"discretization": "vp"},
    "ve": {"discretization": "ve"},
    "iddpm": {"discretization": "iddpm"},
    "explicit": {"sigmas": [60.0, 11.0, 10.5, 2.0, 0.9, 0.4, 0.01]},
}
"""Levels of every kind; the last list has steps of very different widths."""
EVERY: list[Flat] = [
    *({"solver": "ipndm", "order": order} for order in (1, 2, 3, 4)),
    *({"solver": "deis", "order": order} for order in (1, 2, 3, 4)),
    {"solver": "dpmpp_2m"},
    {"solver": "dpmpp_3m"},
    {"solver": "dpm_2"},
    *({"solver": "unipc", "order": order, "variant": b} for order, b in itertools.product((2, 3), ("bh1", "bh2"))),
    *({"solver": f"dpmpp_{kind}_sde", "eta": eta, "s_noise": 1.01} for kind in ("2m", "3m") for eta in (1.0, 0.4)),
    *({"solver": "sa_solver", "order": order, "tau": 0.8} for order in (1, 2, 3, 4)),
    {"solver": "sa_solver", "tau": 0.0},
    {"solver": "sa_solver", "tau": 1.2, "tau_min": 0.05, "tau_max": 11.0, "s_noise": 0.99},
]
FEW_STEPS = sorted(SOLVERS)


def made(latents: torch.Tensor, settings: Sampler, denoiser: Any = None) -> torch.Tensor:
    return sample(denoiser or TwoModes(), latents, settings, noise=NOISE)


def name(flat: Flat) -> str:
    return "-".join(str(value) for value in flat.values())


# -- equality with NumPy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("flat", EVERY, ids=name)
def test_every_solver_with_every_discretization_equals_its_paper_in_numpy(latents, flat: Flat, levels: str) -> None:
    last = [{}, {"afs": True}]
    if flat["solver"] != "dpm_2":
        last += [{"lower_order_final": True}, {"lower_order_final": True, "afs": True}]
    for extra in last:
        settings = sampler(**flat, **extra, **({"num_steps": 7} | LEVELS[levels]))
        by_numpy = SOLVERS[settings.solver](
            latents.numpy(), settings.noise_levels(), settings, lambda i: NOISE(i).numpy(), denoise
        )
        assert np.abs(made(latents, settings).numpy() - by_numpy).max() < 1e-9, settings


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 30])
@pytest.mark.parametrize("flat", EVERY, ids=name)
def test_it_holds_for_any_number_of_steps_that_allows_the_order(latents, flat: Flat, steps: int) -> None:
    if flat.get("order", 3 if "sa" in flat["solver"] else 1) > steps:
        with pytest.raises(InputError, match=f"at most {steps}, the number of steps"):
            sampler(**flat, num_steps=steps)
        return
    settings = sampler(**flat, num_steps=steps)
    by_numpy = SOLVERS[settings.solver](
        latents.numpy(), settings.noise_levels(), settings, lambda i: NOISE(i).numpy(), denoise
    )
    assert np.abs(made(latents, settings).numpy() - by_numpy).max() < 1e-9


# -- convergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flat", "order"),
    [
        ({"solver": "dpm_2"}, 2),
        ({"solver": "dpmpp_2m"}, 2),
        ({"solver": "dpmpp_3m"}, 3),
        ({"solver": "dpmpp_3m", "lower_order_final": True}, 3),
        *(({"solver": "deis", "order": order}, order) for order in (1, 2, 3, 4)),
        *(({"solver": "ipndm", "order": order}, min(order, 2)) for order in (1, 2, 3, 4)),
        *(({"solver": "unipc", "order": p, "variant": b}, p + 1) for p in (2, 3) for b in ("bh1", "bh2")),
        *(({"solver": "sa_solver", "tau": 0.0, "order": p}, p + 1) for p in (1, 2, 3, 4)),
    ],
    ids=lambda given: name(given) if isinstance(given, dict) else str(given),
)
def test_it_converges_at_its_order_on_a_mixture(latents, flat: Flat, order: int) -> None:
    """Global error against the exact trajectory; levels in geometric progression from where a first step errs little.

    iPNDM's coefficients are those of equal steps, so of order 3 and 4 it is of second order here.
    """
    counts, errors = [80, 160, 320], []
    exact = denoise(trajectory(latents.numpy() * 80, 80, 0.1), 0.1)
    for count in counts:
        settings = sampler(sigmas=tuple(np.geomspace(80, 0.1, count + 1)), **flat)
        errors.append(np.abs(made(latents, settings).numpy() - exact).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.45, errors


def test_half_of_the_curvature_would_be_of_second_order(latents) -> None:
    """What other codes weigh: so the order that is tested above is that of the exact weight."""
    counts, errors = [80, 160, 320], []
    exact = denoise(trajectory(latents.numpy() * 80, 80, 0.1), 0.1)
    for count in counts:
        lam = -np.log(np.geomspace(80, 0.1, count + 1))
        x, m, h = latents.numpy() * 80, [], lam[1] - lam[0]
        phi2 = 1 + np.expm1(-h) / h
        for at in lam[:-1]:
            m = [denoise(x, np.exp(-at)), *m[:2]]
            x = np.exp(-h) * x - np.expm1(-h) * m[0]
            if len(m) == 3:
                x = x + phi2 * (1.5 * m[0] - 2 * m[1] + 0.5 * m[2]) + (0.5 - phi2 / h) * (m[0] - 2 * m[1] + m[2]) / 2
        errors.append(np.abs(denoise(x, 0.1) - exact).max())
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - 2) < 0.3, errors


@pytest.mark.parametrize(
    ("flat", "power"),
    [
        ({"solver": "ipndm", "order": 1}, 2),
        ({"solver": "ipndm", "order": 2}, 2),
        *(({"solver": "deis", "order": order}, order + 1) for order in (1, 2, 3, 4)),
        ({"solver": "dpm_2"}, 3),
        ({"solver": "dpmpp_3m"}, 4),
        ({"solver": "dpmpp_2m_sde"}, 3),
        ({"solver": "dpmpp_3m_sde", "eta": 0.5}, 4),
        ({"solver": "unipc", "order": 2}, 4),
        ({"solver": "sa_solver", "order": 2, "tau": 0.7}, 4),
    ],
    ids=lambda given: name(given) if isinstance(given, dict) else str(given),
)
def test_the_local_error_falls_with_the_power_of_its_order(latents, flat: Flat, power: int) -> None:
    """iPNDM on geometric steps: its constant coefficients keep an error of the second power."""
    errors = []
    for steps in (61, 121):
        settings = sampler(num_steps=steps, discretization="ve", sigma_min=0.1, sigma_max=10.0, **flat)
        measured = truncation_errors(TwoModes(), latents, settings, substeps=3)
        assert len(measured) == steps - 1
        errors.append({round(math.log10(sigma), 9): error for sigma, error in measured}[0.0])
    slope = -np.polyfit(np.log([60, 120]), np.log(errors), 1)[0]
    allowed = 1.1 if flat == {"solver": "ipndm", "order": 2} else 0.3
    assert -0.3 < slope - power < allowed, errors


@pytest.mark.parametrize(
    "flat", [{"solver": "dpmpp_2m_sde"}, {"solver": "dpmpp_3m_sde", "eta": 0.5}, {"solver": "sa_solver"}]
)
def test_stochastic_solvers_converge_to_the_data(flat: Flat) -> None:
    """E |x|, which is near MODE in each mode: in distribution, 20,000 numbers, five standard errors."""
    seeds = torch.arange(400)
    latents, noise = (image_noise(seeds, stream, (2, 5, 5)) for stream in ("latents", "churn"))
    x = sample(TwoModes(), latents(0), sampler(num_steps=60, **flat), noise=noise)
    assert abs(x.abs().mean().item() - 0.6018) < 5 * x.abs().std().item() / math.sqrt(x.numel())
    assert abs((x > 0).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(x.numel())


# -- what is known exactly ---------------------------------------------------------------------------------------------


def test_order_1_is_eulers_method(latents) -> None:
    levels = tuple(np.geomspace(20.0, 0.05, 9))
    ours = made(latents, sampler(solver="deis", order=1, sigmas=levels))
    assert torch.allclose(ours, made(latents, Euler(sigmas=levels)), atol=1e-12, rtol=0)


def test_deis_on_equal_steps_is_ipndm(latents) -> None:
    levels = tuple(np.linspace(5.0, 0.5, 10))
    for order in (1, 2, 3, 4):
        a, b = (made(latents, sampler(solver=solver, order=order, sigmas=levels)) for solver in ("deis", "ipndm"))
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def test_unipc_of_order_2_predicts_as_dpmpp_2m_with_bh2(latents) -> None:
    class PredictorAlone(UniPC):
        corrects = False

    ours = made(latents, PredictorAlone(num_steps=8, order=2, variant="bh2"))
    assert torch.allclose(ours, made(latents, DPMpp2M(num_steps=8)), atol=1e-12, rtol=0)


def test_without_noise_sa_solver_is_unipc_but_for_steps_of_one_difference(latents) -> None:
    """Of order 3 they differ in the first two steps, by B(h) / 2; from equal histories on they are one solver."""
    a = made(latents, sampler(solver="sa_solver", tau=0.0, num_steps=40))
    b = made(latents, sampler(solver="unipc", num_steps=40))
    assert not torch.equal(a, b) and torch.allclose(a, b, atol=1e-6, rtol=0)


def test_moments_are_the_integrals_on_both_sides_of_the_series() -> None:
    nodes, gauss = np.polynomial.legendre.leggauss(60)
    v, w = (nodes + 1) / 2, gauss / 2
    for z in (1e-8, 1e-3, 0.3, 0.999999, 1.0, 1.000001, 4.0, 30.0):
        expected = [(w * z * np.exp(-z * (1 - v)) * v**k).sum() for k in range(5)]
        assert np.allclose(exponential_moments(z, 5), expected, rtol=1e-11, atol=0)


def test_weights_integrate_polynomials_exactly_whatever_the_nodes() -> None:
    nodes = [0.0, -0.7, -40.0, -41.0]
    made = weights(nodes, [1 / (k + 1) for k in range(4)])
    for k in range(4):
        assert sum(w * v**k for w, v in zip(made, nodes)) == pytest.approx(1 / (k + 1), abs=1e-9)


# -- cost, noise, guidance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("flat", EVERY, ids=name)
def test_network_evaluations_are_those_that_are_made(latents, flat: Flat, afs: bool) -> None:
    for steps in (5, 8):
        denoiser, settings = TwoModes(), sampler(num_steps=steps, afs=afs, **flat)
        made(latents, settings, denoiser)
        assert denoiser.calls == settings.nfe == (2 * steps - 1 if flat["solver"] == "dpm_2" else steps) - afs


@pytest.mark.parametrize("bounds", [(0.5, 3.0), (0.0, math.inf), (3.0, math.inf), (0.0, 0.01), (79.0, 90.0)])
@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("flat", EVERY, ids=name)
def test_settings_guide_as_a_guided_denoiser_does_and_cost_what_they_say(latents, flat, afs, bounds) -> None:
    main, guide = TwoModes(), (lambda x, sigma, labels: x * 0.5)
    counted: list[float] = []

    def weak(x: torch.Tensor, sigma: torch.Tensor, labels: object = None) -> torch.Tensor:
        counted.append(float(sigma[0]))
        return guide(x, sigma, labels)

    own = {"guidance": 2.0, "guidance_min": bounds[0], "guidance_max": bounds[1]}
    settings = sampler(num_steps=6, afs=afs, **flat, **own)
    ours = sample(main, latents, settings, noise=NOISE, guide=weak)
    assert main.calls + len(counted) == settings.nfe
    assert all(bounds[0] <= level <= bounds[1] for level in counted)
    expected = sample(
        Guided(TwoModes(), guide, weight=2.0, interval=bounds),
        latents,
        sampler(num_steps=6, afs=afs, **flat),
        noise=NOISE,
    )
    assert torch.equal(ours, expected)
    form = settings.effective(main)
    assert torch.equal(sample(TwoModes(), latents, form, noise=NOISE, guide=guide), ours)


@pytest.mark.parametrize(
    "flat", [flat for flat in EVERY if CLASSES[flat["solver"]].is_sde and flat.get("tau") != 0], ids=name
)
def test_noise_is_keyed_by_image_whatever_the_batch(flat: Flat) -> None:
    seeds = torch.arange(5)
    settings = sampler(num_steps=6, **flat)

    def of(these: torch.Tensor) -> torch.Tensor:
        latents = image_noise(these, "latents", SHAPE)(0)
        return sample(TwoModes(), latents, settings, noise=image_noise(these, "churn", SHAPE))

    together = of(seeds)
    assert settings.needs_noise()
    for part in (seeds[:1], seeds[1:4], seeds[[4, 2]]):
        assert torch.equal(of(part), together[part])
    with pytest.raises(InputError, match="adds noise: pass noise="):
        sample(TwoModes(), torch.zeros(1, *SHAPE), settings)


def test_sa_solver_draws_noise_inside_its_window_only(latents) -> None:
    asked: list[int] = []

    def noise(step: int, draw: int = 0) -> torch.Tensor:
        asked.append(step)
        return NOISE(step, draw)

    levels = (40.0, 10.0, 3.0, 0.5, 0.04, 0.01)
    settings = sampler(solver="sa_solver", sigmas=levels, tau_min=0.05, tau_max=10.0)
    sample(TwoModes(), latents, settings, noise=noise)
    assert asked == [1, 2, 3] and settings.needs_noise()
    none = settings.replace(tau_min=11.0, tau_max=20.0)
    assert not none.needs_noise() and none.effective() == settings.replace(tau=0.0).effective()
    assert settings.replace(tau_max=30.0).effective() == settings.effective()


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", EVERY, ids=name)
def test_the_flat_form_and_the_effective_form_give_the_same_images(latents, flat: Flat) -> None:
    for extra in ({}, {"afs": True}, {"lower_order_final": True}, {"sigmas": [50, 9, 2, 0.4, 0.02]}):
        if flat["solver"] == "dpm_2" and "lower_order_final" in extra:
            continue
        settings = sampler(**flat, **({"num_steps": 5} | extra))
        assert sampler(**json.loads(json.dumps(settings.to_dict()))) == settings
        form = settings.effective()
        assert torch.equal(made(latents, form), made(latents, settings)) and form.effective() == form


def test_orders_that_no_step_reaches_are_one_sampler() -> None:
    for solver, orders in (("ipndm", (3, 4)), ("deis", (3, 4)), ("sa_solver", (3, 4))):
        a, b = (sampler(solver=solver, num_steps=4, order=order).effective() for order in orders)
        assert a == b and a.order == 3
        assert sampler(solver=solver, num_steps=5, order=4).effective().order == 4
    two = [sampler(solver="unipc", num_steps=3, order=order).effective() for order in (2, 3)]
    assert two[0] == two[1]


def test_another_solver_on_top_of_a_file_has_its_own_order() -> None:
    found = sampler(solver="ipndm", num_steps=8, rho=5.0, afs=True)
    assert with_changes(found, {"solver": "unipc"}, "--set") == sampler(solver="unipc", num_steps=8, rho=5.0, afs=True)
    assert with_changes(found, {"solver": "deis", "order": 2}, "--set").order == 2
    assert with_changes(found, {"rho": 7.0}, "--set").order == 4


def test_lower_orders_at_the_end_count_the_step_to_0() -> None:
    settings = sampler(solver="deis", order=4, num_steps=8, lower_order_final=True)
    assert settings.orders(8) == [1, 2, 3, 4, 4, 3, 2]
    assert settings.effective().lower_order_final
    for idle in ({"solver": "dpmpp_2m"}, {"solver": "deis", "order": 2}, {"solver": "dpmpp_2m_sde"}):
        form = sampler(num_steps=8, lower_order_final=True, **idle).effective()
        assert form == sampler(num_steps=8, **idle).effective() and not form.lower_order_final
    short = sampler(solver="deis", order=4, num_steps=4, lower_order_final=True).effective()
    assert (short.order, short.lower_order_final) == (2, False)


@pytest.mark.parametrize("solver", FEW_STEPS)
def test_on_a_network_with_a_grid_of_levels_equal_forms_give_equal_images(latents, solver: str) -> None:
    class Network(torch.nn.Module):
        label_dim = 0

        def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
            return x * 0.9 + noise_labels.reshape(-1, 1, 1, 1) * 1e-3

    network = PRECONDITIONERS["iddpm"](Network())
    for settings in (sampler(solver=solver, num_steps=6, sigma_min=0.01), sampler(solver=solver, num_steps=40)):
        form = settings.effective(network)
        assert torch.equal(made(latents, form, network), made(latents, settings, network))
        assert form.effective(network) == form


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["deis", "dpmpp_3m", "dpmpp_2m_sde", "unipc", "sa_solver", "dpm_2"])
@pytest.mark.parametrize(("column", "value"), [("schedule", "vp"), ("schedule", "ve"), ("scaling", "vp")])
def test_a_schedule_or_scaling_that_the_solver_does_not_read_is_refused(solver, column, value) -> None:
    says = rf"sampler\.{column}='{value}' is not allowed: \w+ with solver {solver}, which steps between noise levels"
    with pytest.raises(InputError, match=says):
        sampler(solver=solver, **{column: value})


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"solver": "deis", "order": 0}, r"sampler\.order=0 is not allowed: 1, 2, 3 or 4"),
        ({"solver": "unipc", "order": 1}, r"sampler\.order=1 is not allowed: 2 or 3"),
        ({"solver": "unipc", "order": 4}, r"sampler\.order=4 is not allowed: 2 or 3"),
        ({"solver": "sa_solver", "order": 5}, r"sampler\.order=5 is not allowed: 1, 2, 3 or 4"),
        ({"solver": "ipndm", "order": 4, "num_steps": 3}, r"sampler\.order=4 is not allowed: at most 3, the number of"),
        ({"solver": "deis", "sigmas": [2.0, 1.0]}, r"sampler\.order=3 is not allowed: at most 2, the number of steps"),
        ({"solver": "unipc", "variant": "bh3"}, r"sampler\.variant='bh3' is not allowed: bh1 or bh2"),
        ({"solver": "deis", "order": 2.5}, r"sampler\.order=2\.5 is not allowed: a whole number"),
        ({"solver": "deis", "order": math.nan}, r"sampler\.order=nan is not allowed: a whole number"),
        ({"solver": "dpmpp_2m_sde", "eta": 0.0}, r"sampler\.eta=0\.0 is not allowed: .*without noise it is dpmpp_2m"),
        ({"solver": "dpmpp_3m_sde", "eta": math.nan}, r"sampler\.eta=nan is not allowed"),
        ({"solver": "dpmpp_2m_sde", "s_noise": -1}, r"sampler\.s_noise=-1\.0 is not allowed"),
        ({"solver": "sa_solver", "tau": -0.1}, r"sampler\.tau=-0\.1 is not allowed: 0 or more"),
        ({"solver": "sa_solver", "tau": math.nan}, r"sampler\.tau=nan is not allowed"),
        (
            {"solver": "sa_solver", "tau_min": 2.0, "tau_max": 1.0},
            r"sampler\.tau_min=2\.0 is not allowed: at most tau_max",
        ),
        ({"solver": "deis", "afs": 1}, r"sampler\.afs=1 is not allowed: true or false"),
        (
            {"solver": "deis", "lower_order_final": "no"},
            r"sampler\.lower_order_final='no' is not allowed: true or false",
        ),
        ({"solver": "heun", "afs": True}, r"sampler\.afs=True is not allowed: solver heun has no such setting; .*deis"),
        ({"solver": "rk45", "afs": True}, r"sampler\.afs=True is not allowed: solver rk45 has no such setting"),
        ({"solver": "dpm_2", "lower_order_final": True}, r"solver dpm_2 has no such setting"),
        (
            {"solver": "deis", "variant": "bh1"},
            r"sampler\.variant='bh1' is not allowed: solver deis has no such setting",
        ),
        ({"solver": "deis", "gammas": [0.1]}, r"sampler\.gammas=.*solver deis has no such setting; euler and heun"),
        ({"solver": "rk45", "sigmas": [2.0, 1.0]}, r"sampler\.sigmas=.*solver rk45, which chooses its own levels"),
        *(
            ({"solver": solver, "sigmas": levels}, r"sampler\.sigmas=.* is not allowed: two noise levels or more, desc")
            for solver in ("deis", "dpm_2", "euler")
            for levels in (
                [1.0, 2.0],
                [2.0, 2.0, 1.0],
                [3.0, math.nan, 1.0],
                [math.nan, 1.0],
                [2.0, 0.0],
                [math.inf, 1.0],
            )
        ),
        ({"solver": "deis", "sigmas": ["a", "b"]}, r"sampler\.sigmas=.* is not allowed: numbers"),
        ({"solver": "deis", "sigmas": 3.0}, r"sampler\.sigmas=3\.0 is not allowed: numbers"),
        ({"solver": "deis", "sigmas": [9, 4, 1], "num_steps": 4}, r"sampler\.num_steps=4 .*3, the number of sigmas"),
        (
            {"solver": "euler", "num_steps": 3, "gammas": [0.1, math.nan, 0]},
            r"sampler\.gammas=.*from 0 to sqrt\(2\) - 1",
        ),
        ({"solver": "heun", "num_steps": 3, "gammas": [0.1]}, r"sampler\.gammas=.*3 numbers, one a step"),
    ],
    ids=lambda given: name(given) if isinstance(given, dict) else "",
)
def test_what_is_not_allowed_is_one_line_with_the_setting_and_what_is(flat: Flat, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        sampler(**flat)
    assert "\n" not in str(caught.value)


def test_the_denoiser_of_these_tests_is_the_mean_over_the_two_modes() -> None:
    x = np.array([-2.0, -0.1, 0.7, 5.0])
    for sigma in (0.1, 1.0, 10.0):
        variance = SD**2 + sigma**2
        share = np.array([np.exp(-((x - mode) ** 2) / (2 * variance)) for mode in (MODE, -MODE)])
        means = np.array([(SD**2 * x + sigma**2 * mode) / variance for mode in (MODE, -MODE)])
        assert denoise(x, sigma) == pytest.approx((share * means).sum(0) / share.sum(0), abs=1e-12)
