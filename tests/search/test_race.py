"""How the race spends: on different settings, on ever fewer of them, on proposals while they promise something."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from edm_ray.search.proposals import Proposals
from edm_ray.search.race import LEAST_PROPOSED, RaceRun
from edm_ray.search.trials import ranked
from tests.search.test_statistics import estimate
from tests.search.worlds import driver_of, run

PLAN = {"max_chunks": 32, "num_line": 0, "num_global": 24, "num_model": 60, "num_finalists": 8}
TWINS = """
name: twins
search:
  churn_fraction: {grid: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}
  s_tmin: {grid: [0.01, 0.03, 0.07, 0.15, 0.3, 0.6]}
"""


def looks(driver, asked):
    """Chunks -> settings looked at so long in the search."""
    found = collections.defaultdict(set)
    for evaluation in asked:
        if evaluation.seeds == "search":
            found[evaluation.chunks].add(driver.search.registry.samplers[evaluation.label])
    return found


def test_of_settings_that_are_surely_equal_one_stays():
    """Twins have the same noise but for a thousandth; the others are as good on average, and may still be better."""
    driver = driver_of(TWINS, **PLAN)
    search = driver.search
    noise = np.random.default_rng(0).normal(size=(3, 10)) * 0.05
    found = {}
    for number in range(6):
        label = search.registry.add({"churn_fraction": 0.1 * (number + 1), "s_tmin": 0.1}, f"{number}")
        found[label] = estimate(list(5.0 + noise[number // 2] - noise[number // 2].mean() + 0.001 * (number % 2)))
    rules = RaceRun(driver.plan.strategy, search, Proposals(search)).rules
    assert set(rules.going_on(ranked(found), 0)) == set(list(found)[::2])


def test_each_doubling_halves_how_many_may_stay():
    """Nothing differs by more than its noise, so that nobody drops out for being worse."""
    driver = driver_of(TWINS, **PLAN)
    asked = run(driver, fid=lambda settings: 5.0, noise=(0.0, 3.0), world=2)
    final = collections.Counter(e.chunks for e in asked if e.seeds == "search")
    polished = looks(driver, asked)
    assert driver.search.log.first_chunks == 8 and len(polished[16]) >= 8, "noise hides all: looks begin at 8 chunks"
    assert 3 <= len(polished[32]) <= 4 + 1 and final[32] == len(polished[32])


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_proposals_end_when_the_model_expects_nothing_more(slope):
    driver = driver_of(TWINS, **{**PLAN, "num_global": 6})
    asked = run(driver, fid=lambda settings: 5.0 + slope * (settings.s_churn - 3.0) ** 2, noise=(10.0, 0.001))
    proposed = {e.label for e in asked if e.label.startswith("model ")}
    assert len(proposed) == LEAST_PROPOSED < 41, "six and thirty of 48 points and deterministic sampling"
    assert any("proposals; the best of more promises 0.0" in line for line in driver.search.log.decisions)
