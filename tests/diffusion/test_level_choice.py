"""Noise levels chosen on trajectories: exact inner products, the solver's own errors, the best of all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edm_ray.diffusion.analysis.analytic import GaussianMixture
from edm_ray.diffusion.analysis.level_choice import best_levels, can_choose, data_deviation, gaussian_weights
from edm_ray.diffusion.analysis.trajectories import Trajectories, inner_products
from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.samplers import Evaluation, Sampler, sampler
from edm_ray.diffusion.samplers.levels import edm_levels

LEVELS = edm_levels(0.02, 80.0, 10, 7.0)
SHAPE = (6, 1, 3, 3)
SOLVERS = {
    "deis of order 1": sampler("deis", order=1),
    "ipndm": sampler("ipndm", order=4),
    "deis": sampler("deis", order=3),
    "dpmpp_2m": sampler("dpmpp_2m"),
    "dpmpp_3m": sampler("dpmpp_3m"),
    "unipc": sampler("unipc", order=2),
}


@pytest.fixture(scope="module")
def mixture() -> AtLevel:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, *SHAPE[1:], generator=generator, dtype=torch.float64)
    return AtLevel(GaussianMixture(means, torch.tensor([0.1, 0.2, 0.3, 0.2]), torch.ones(4)))


@pytest.fixture(scope="module")
def states(mixture: AtLevel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """x and D along Heun's trajectories, written plainly."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * LEVELS[0]
    states, denoised = [], []
    for level, after in itertools.zip_longest(LEVELS, LEVELS[1:]):
        states.append(x)
        denoised.append(mixture(x, level))
        if after is not None:
            slope = (x - denoised[-1]) / level
            ahead = x + (after - level) * slope
            x = x + (after - level) * (slope + (ahead - mixture(ahead, after)) / after) / 2
    return states, denoised


@pytest.fixture(scope="module")
def trajectories(mixture: AtLevel, states) -> Trajectories:
    latents = states[0][0] / LEVELS[0]
    products = inner_products(mixture, latents, LEVELS).numpy() / latents.numel()
    return Trajectories(tuple(LEVELS), products)


def test_inner_products_are_those_of_the_trajectories(trajectories: Trajectories, states):
    rows = torch.stack([each.flatten() for part in states for each in part])
    exact = (rows @ rows.T / rows.shape[1]).numpy()
    assert np.abs(trajectories.products - exact).max() <= 1e-6 * np.abs(exact).max()
    assert data_deviation(trajectories) == pytest.approx(float(states[0][-1].square().mean().sqrt()), rel=1e-6)


def plain_error(solver: Sampler, states, visited: tuple[int, ...], deviation: float) -> float:
    """The sum over steps, from tensors of the whole images."""
    x, denoised = states
    total = float((denoised[visited[-1]] - x[-1]).square().mean())
    for i, (_, there) in enumerate(itertools.pairwise(visited)):
        order = min(i + 1, solver.full_order)  # type: ignore[attr-defined]
        past = [Evaluation(LEVELS[k], x[k], denoised[k]) for k in visited[: i + 1][::-1][:order]]
        ahead = denoised[there] if solver.corrects else None  # type: ignore[attr-defined]
        step = solver.advance(past, LEVELS[there], ahead)  # type: ignore[attr-defined]
        carried = (1 + (LEVELS[there] / deviation) ** 2) ** -0.5
        total += float((step - x[there]).square().mean()) * carried
    return total


@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_told_is_that_of_the_solvers_own_steps(name: str, trajectories: Trajectories, states):
    deviation = data_deviation(trajectories)
    levels, error = best_levels(trajectories, SOLVERS[name], 5, gaussian_weights(trajectories))
    visited = tuple(LEVELS.index(level) for level in levels)
    assert error == pytest.approx(plain_error(SOLVERS[name], states, visited, deviation), rel=1e-4)


@pytest.mark.parametrize("count", [2, 4, 9, 10])
def test_of_a_first_order_solver_they_are_the_best_of_all_choices(count: int, trajectories: Trajectories, states):
    solver, deviation = SOLVERS["deis of order 1"], data_deviation(trajectories)
    every = [(0, *rest) for rest in itertools.combinations(range(1, len(LEVELS)), count - 1)]
    least = min(every, key=lambda visited: plain_error(solver, states, visited, deviation))
    levels, _ = best_levels(trajectories, solver, count, gaussian_weights(trajectories))
    assert levels == [LEVELS[k] for k in least]


@pytest.mark.parametrize("name", SOLVERS)
def test_they_descend_from_the_highest_and_are_no_worse_than_even_ones(name: str, trajectories: Trajectories, states):
    solver, deviation = SOLVERS[name], data_deviation(trajectories)
    levels, error = best_levels(trajectories, solver, 4, gaussian_weights(trajectories))
    assert levels[0] == LEVELS[0] and all(a > b for a, b in itertools.pairwise(levels)) and len(levels) == 4
    assert error <= plain_error(solver, states, (0, 3, 6, 9), deviation) * (1 + 1e-4)


def test_a_level_at_which_errors_weigh_too_much_is_not_visited(trajectories: Trajectories):
    weights = gaussian_weights(trajectories)
    levels, _ = best_levels(trajectories, SOLVERS["dpmpp_2m"], 5, weights)
    for level in levels[1:-1]:
        heavy = weights.copy()
        heavy[LEVELS.index(level)] *= 1e9
        others, error = best_levels(trajectories, SOLVERS["dpmpp_2m"], 5, heavy)
        assert level not in others and np.isfinite(error)


def test_equal_errors_make_the_largest_step_smaller(trajectories: Trajectories):
    weights = gaussian_weights(trajectories)
    _, largest = best_levels(trajectories, SOLVERS["dpmpp_2m"], 5, weights, "largest")
    _, total = best_levels(trajectories, SOLVERS["dpmpp_2m"], 5, weights)
    assert total / 5 <= largest <= total


def test_only_linear_steps_without_noise_can_be_chosen_for():
    assert all(map(can_choose, SOLVERS.values()))
    others = [sampler("heun"), sampler("dpm_2"), sampler("dpmpp_2m_sde"), sampler("sa_solver", tau=0.5)]
    assert not any(map(can_choose, [*others, sampler("dpmpp_2m", guidance=2.0)]))
