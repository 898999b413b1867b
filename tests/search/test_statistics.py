"""What is said of FIDs on shared seeds, against what is true of simulated ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate, standard_error
from edm_ray.search.result import result_of
from edm_ray.search.statistics import Difference, difference, measure_noise, probability_best, pseudo_values, undecided
from edm_ray.search.surrogate import Surrogate
from tests.search.worlds import SPACE, driver_of, run, space_from, truth


def estimate(groups) -> FidEstimate:
    """The estimate whose pseudo-values are ``groups``: a mean, and what each adds to it."""
    groups = np.asarray(groups, float)
    influence = (groups - groups.mean()) / len(groups)
    return FidEstimate(
        fid=groups.mean(),
        debiased=groups.mean(),
        se=standard_error(influence),
        n=1000,
        influence=tuple(influence),
        reference="r",
        extractor="e",
    )


def test_paired_intervals_hold_the_true_difference_in_95_percent_of_worlds():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        shared = 5 * rng.normal(size=10)
        a, b = estimate(3.2 + shared + 0.3 * rng.normal(size=10)), estimate(3.0 + shared + 0.3 * rng.normal(size=10))
        found = difference(a, b)
        hits += found.low <= 0.2 <= found.high
    assert 930 <= hits <= 970


def test_pairing_removes_the_noise_that_all_share():
    rng = np.random.default_rng(1)
    shared = 5 * rng.normal(size=10)
    a, b = estimate(3 + shared), estimate(2 + shared)
    found = difference(a, b)
    assert found.gap == pytest.approx(1.0) and found.se == pytest.approx(0, abs=1e-9) and a.se > 1


def test_fids_of_other_n_are_not_compared():
    a = estimate(range(10))
    with pytest.raises(InputError, match="different n"):
        difference(a, dataclasses.replace(a, n=5))


def test_pseudo_values_of_a_mean_are_the_values():
    values = np.random.default_rng(2).normal(size=8)
    assert pseudo_values(estimate(values)) == pytest.approx(values)


def test_the_probability_of_being_best_is_calibrated_and_keyed():
    """Of two settings that differ by one standard error of the difference, the better leads with the normal's 84 %."""
    groups = np.linspace(-1, 1, 10)
    groups *= math.sqrt(10) / groups.std(ddof=1)  # the mean then has standard error 1
    chance = probability_best({"a": estimate(groups), "b": estimate(np.full(10, 1.0))})
    assert chance["a"] == pytest.approx(0.841, abs=0.02) and sum(chance.values()) == pytest.approx(1)
    assert chance == probability_best({"a": estimate(groups), "b": estimate(np.full(10, 1.0))})
    assert probability_best({"a": estimate(groups), "b": estimate(groups)}) == {"a": 0.5, "b": 0.5}
    assert probability_best({}) == {}


def test_noise_is_measured():
    rng = np.random.default_rng(3)
    shared = 4 * rng.normal(size=(50, 10))
    each = [measure_noise([estimate(s + 0.5 * rng.normal(size=10)) for _ in range(4)]) for s in shared]
    assert np.mean([noise.se for noise in each]) == pytest.approx(4 / math.sqrt(10), rel=0.1)
    assert np.mean([noise.paired_se for noise in each]) == pytest.approx(0.5 * math.sqrt(2 / 10), rel=0.1)
    assert measure_noise([dataclasses.replace(estimate(range(10)), fid=5.5)] * 2).bias == pytest.approx(1000)


def test_the_confirmed_are_compared_with_deterministic_and_with_the_papers_setting():
    space = space_from(SPACE + "paper: paper\n")
    driver = driver_of(space)
    run(driver)
    result = result_of(driver)
    found = result.of(result.found)
    assert {result.found, "deterministic", "paper"} <= {entry.label for entry in result.confirmed}
    gain = truth(found.settings) - truth(space.starts["paper"].effective(None))
    assert found.against_paper.low <= gain <= found.against_paper.high
    assert any("Against the paper's setting (paper)" in line for line in result.summary())
    assert result.of("paper").against_paper is None
    assert sum(entry.probability_best for entry in result.confirmed) == pytest.approx(1)


def test_the_model_finds_the_bottom_of_a_bowl_and_its_doubt_grows_away_from_data():
    rng = np.random.default_rng(4)
    x = rng.random((40, 2))
    fids = np.exp(1 + (x[:, 0] - 0.3) ** 2 + 2 * (x[:, 1] - 0.7) ** 2 + 0.005 * rng.normal(size=40))
    model = Surrogate(x, fids, [1000] * 40)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 21)] * 2), -1).reshape(-1, 2)
    mean, _ = model.predict(grid)
    assert np.abs(grid[mean.argmin()] - [0.3, 0.7]).max() < 0.11
    left = Surrogate(x[x[:, 0] < 0.5], fids[x[:, 0] < 0.5], [1000] * int((x[:, 0] < 0.5).sum()))
    _, doubt = left.predict(np.array([[0.2, 0.5], [1.0, 0.5]]))
    assert doubt[1] > 2 * doubt[0]


def test_the_model_trusts_long_looks_more():
    x = np.linspace(0, 1, 12)[:, None]
    noise = np.where(np.arange(12) % 2 == 0, 0.2, 0.0)
    fids = np.exp(1 + x[:, 0] + noise)
    images = np.where(noise > 0, 1000, 64000)
    mean, _ = Surrogate(x, fids, images).predict(x)
    assert np.abs(mean - 1 - x[:, 0])[1::2].max() < 0.05


def test_a_landscape_without_differences_breaks_nothing():
    model = Surrogate([[0.1], [0.5], [0.9]], [2.0, 2.0, 2.0], [10, 10, 10])
    assert np.isfinite(model.improvement(np.array([[0.3]]), np.array([0.6]))).all()


def test_what_could_not_be_decided_is_said_with_the_images_that_would():
    """Half of the reach takes four times the images."""
    told = undecided(Difference(gap=-0.5, se=0.4, low=-1.5, high=0.5), 2000)
    assert told == "With 2,000 images differences below 1.000 cannot be seen; about 8,000 would decide one of 0.500."
    for gap in (0.0, 1e-6):
        assert "too small to be worth deciding" in undecided(
            Difference(gap=gap, se=0.4, low=gap - 1, high=gap + 1), 2000
        )
