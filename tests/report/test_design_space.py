"""The figures of `edm-ray explain` show what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edm_ray.diffusion.samplers import sampler
from edm_ray.report import design_space as drawn
from edm_ray.seeding import image_noise


def lines_of(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.get_lines()}


def test_schedules_are_those_of_table_1() -> None:
    steps, by_rho, sigmas, scales = drawn.draw_schedules(12).axes
    for name in ("edm", "vp", "ve", "iddpm"):
        expected = sampler(num_steps=12, discretization=name).noise_levels()
        assert lines_of(steps)[name][1].tolist() == expected
    assert set(lines_of(by_rho)) == {"rho = 1", "rho = 3", "rho = 5", "rho = 7", "rho = 10"}
    share, sigma = lines_of(sigmas)["VP"]
    assert sigma == pytest.approx(np.sqrt(np.expm1(9.95 * share**2 + 0.1 * share)), rel=1e-6)
    assert lines_of(sigmas)["VE"][1] == pytest.approx(100 * np.sqrt(share))
    assert lines_of(scales)["VP"][1] == pytest.approx((1 + sigma**2) ** -0.5)
    assert set(lines_of(scales)["EDM"][1]) == {1.0}


def test_trajectories_end_at_the_modes_and_the_middle_one_stays() -> None:
    for axes in drawn.draw_trajectories().axes:
        ends = np.array([line.get_ydata()[-1] for line in axes.get_lines()])
        assert len(ends) == 17 and ends[8] == pytest.approx(0, abs=1e-9)
        assert np.abs(np.abs(np.delete(ends, 8)) - 1).max() < 0.3


@pytest.mark.parametrize("sigma_data", [0.5, 0.9])
def test_weighting_shows_the_weight_and_a_density_of_each_objective(sigma_data) -> None:
    above, below = drawn.draw_weighting(sigma_data).axes
    sigma, weight = lines_of(above)["edm"]
    assert weight == pytest.approx((sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2)
    assert lines_of(above)["ve"][1] == pytest.approx(1 / sigma**2)
    densities = {patch.get_label(): patch.get_data() for patch in below.patches}
    assert set(densities) == {"edm", "vp", "ve", "iddpm"}
    values, edges, _ = densities["edm"]
    middle = (np.log(edges[1:]) + np.log(edges[:-1])) / 2
    assert values == pytest.approx(np.exp(-((middle + 1.2) ** 2) / 2.88) / 1.2 / math.sqrt(2 * math.pi), abs=5e-3)
    assert below.get_shared_x_axes().joined(above, below)


def test_truncation_is_drawn_and_told_for_every_rho() -> None:
    latents = image_noise(torch.arange(32), "latents", (1, 1, 1))(0)
    measured = drawn.measure_truncation(drawn.mixture(), latents, 10)
    (axes,) = drawn.draw_truncation(measured).axes
    for rho in (3.0, 5.0, 7.0, 10.0):
        sigma, error = lines_of(axes)[f"rho = {rho:g}"]
        assert sigma.tolist() == sampler(num_steps=10, rho=rho).noise_levels()[:-1]
        assert (error > 0).all() and error.tolist() == [value for _, value in measured[rho]]
    made = {3.0: [(80.0, 0.1), (1.0, 0.5)], 7.0: [(80.0, 0.4), (1.0, 0.2)]}
    said = drawn.say_truncation(made)
    assert said[0] == "rho = 3: largest error of a step 0.5, at sigma 1"
    assert "smallest at rho = 7" in said[-1]


def test_inversion_is_drawn_by_the_number_of_steps() -> None:
    x = torch.tensor([-1.1, -1.0, -0.9, 0.95, 1.0, 1.05], dtype=torch.float64).reshape(-1, 1, 1, 1)
    measured = drawn.measure_inversion(drawn.mixture(), x, [16, 64])
    (axes,) = drawn.draw_inversion(measured).axes
    for name, errors in measured.items():
        steps, error = lines_of(axes)[name]
        assert steps.tolist() == [16, 64] and error.tolist() == list(errors.values())
    assert measured["Heun, rho 3"][64] < measured["Euler, rho 3"][64]


def test_the_loss_is_drawn_as_measured() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 7.0]])
    (axes,) = drawn.draw_loss(losses, [0.1, 1.0]).axes
    assert axes.get_lines()[0].get_ydata().tolist() == [2.0, 5.0]
    (bars,) = axes.collections
    lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert lengths == pytest.approx([2 / math.sqrt(3), 2 * math.sqrt(3) / math.sqrt(3)])
