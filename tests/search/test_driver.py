"""A sweep without Ray, and what it may spend."""

from __future__ import annotations

import pytest

from edm_ray.errors import InputError
from edm_ray.search.driver import Driver, run
from edm_ray.search.elimination import places
from edm_ray.search.objective import Objective
from edm_ray.search.plan import STRATEGIES, sweep_plan
from edm_ray.search.race import Race, rungs
from tests.search import worlds
from tests.search.worlds import SPACE, driver_of, plan_of, simulate


def test_a_sweep_without_ray_decides_as_one_that_is_told_batch_by_batch():
    """Of what fails the reason is listed, and the sweep continues."""
    local, told = driver_of(SPACE, strategy="random"), driver_of(SPACE, strategy="random")
    trials = []

    def measure(evaluation):
        if evaluation.label == "paper":
            raise InputError("no such thing")
        return simulate(evaluation)

    run(local, measure, trials.append)
    worlds.run(told, fail=lambda evaluation: evaluation.label == "paper")
    assert local.outcome == told.outcome and local.search.log == told.search.log
    assert trials == local.trials
    assert [t.failure for t in trials if t.estimate is None] == ["no such thing"]
    assert all(trial.seconds > 0 for trial in trials if trial.estimate is not None), "what the report shows"


@pytest.mark.parametrize("nfe", [False, True])
@pytest.mark.parametrize("finalists", [2, 3, 7, 8, 20])
def test_the_bound_of_a_race_counts_the_places_that_it_gives(nfe, finalists):
    objective = Objective(nfe=nfe)
    race = Race(initial_chunks=3, max_chunks=96, num_finalists=finalists)
    counts = [samplers for samplers, _ in rungs(race, objective)]
    assert counts == [places(finalists, doublings, objective) for doublings in range(5)]
    assert counts[0] == finalists and counts == sorted(counts, reverse=True)
    assert counts[-1] == min(finalists, 8 if nfe else 3)
    assert sum(chunks for _, chunks in rungs(race, objective)) == 93


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_flat_form_leaves_out_what_other_strategies_take(name):
    plan = plan_of(strategy=name, grid_points=3, num_starts=2)
    assert plan.strategy.name == name and plan.strategy.max_chunks == 8 and plan.chunk_size == 100
    assert Driver(worlds.space_from(SPACE), plan).describe().startswith(f"{name}, ")


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"strategy": "rase"}, "did you mean 'race'"),
        ({"num_globl": 3}, "did you mean 'num_global'"),
        ({"strategy": "asha", "initial_chunks": 9, "max_chunks": 8}, "max_chunks=8 is not allowed: at least 9"),
        ({"strategy": "grid", "grid_points": 0}, "points=0 is not allowed"),
        ({"chunk_size": 8}, "a first look of 48 images says nothing"),
    ],
)
def test_a_plan_that_makes_no_sense_names_the_setting(flat, says):
    with pytest.raises(InputError, match=says):
        sweep_plan(**flat)
