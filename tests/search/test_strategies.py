"""The decisions of a sweep on simulated landscapes, without Ray or images."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest

from edm_ray.diffusion.samplers import sampler
from edm_ray.errors import InputError
from edm_ray.search.driver import Driver
from edm_ray.search.plan import STRATEGIES, SweepPlan, sweep_plan
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.result import SweepResult, result_of
from edm_ray.search.sampler_file import best_sampler_yaml, settings_from_yaml
from tests.search.worlds import CHUNK_SIZE, CONFIRM_CHUNKS, SPACE, driver_of, run, simulate, space_from, truth

ALL = sorted(STRATEGIES)


@pytest.fixture
def space():
    return space_from(SPACE)


def best_of(driver):
    return driver.search.registry.samplers[driver.outcome.best]


def sweep_by(space, name, **changes):
    return driver_of(space, strategy=name, grid_points=3, **changes)


@pytest.mark.slow
def test_the_race_finds_a_setting_within_one_percent_of_the_best_there_is(space):
    regrets = []
    for world in range(10):
        driver = driver_of(space)
        run(driver, world=world)
        regrets.append(truth(best_of(driver)) / 5.0 - 1)
    assert sum(regret < 0.01 for regret in regrets) >= 9


def test_the_race_sees_through_common_random_numbers_what_independent_seeds_hide(space):
    """Noise of one FID is 40 times the noise of a difference: a search by single FIDs would be lost in it."""
    driver = driver_of(space)
    run(driver, noise=(40.0, 1.0))
    assert truth(best_of(driver)) < 5.1
    assert driver.search.log.noise.se > 10 * driver.search.log.noise.paired_se


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_arrival_changes_no_decision(space, name):
    orders = [lambda items: items, lambda items: items[::-1], lambda items: sorted(items, key=lambda e: hash(e.id))]
    results = []
    for order in orders:
        driver = sweep_by(space, name)
        run(driver, order=order)
        results.append(json.dumps(result_of(driver).to_dict()))
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", ALL)
def test_every_strategy_confirms_its_winner_and_deterministic_sampling_on_fresh_seeds(space, name):
    driver = sweep_by(space, name)
    asked = run(driver)
    result = result_of(driver)
    n = CONFIRM_CHUNKS * CHUNK_SIZE
    assert {result.found, DETERMINISTIC} <= {entry.label for entry in result.confirmed}
    assert all(entry.estimate.n == n for entry in result.confirmed) and f"on {n} fresh images" in result.summary()[0]
    assert [e.seeds for e in asked] == sorted((e.seeds for e in asked), reverse=True)  # search first, then confirm
    assert truth(result.of(result.found).settings) < truth(sampler())


@pytest.mark.parametrize("name", ALL)
def test_the_sweep_never_costs_more_than_it_said(space, name):
    for world in range(3):
        driver = sweep_by(space, name)
        most = driver.search.budget.most_images
        run(driver, world=world)
        assert 0 < result_of(driver).images <= most


def test_confirmation_decides_nothing(space):
    driver = driver_of(space)
    while driver.stage != "confirm":
        for evaluation in driver.ask():
            assert evaluation.seeds == "search"
            driver.tell(evaluation.id, simulate(evaluation))
    best = driver.outcome.best
    for evaluation in driver.ask():
        assert evaluation.seeds == "confirm"
        good = dataclasses.replace(simulate(evaluation), fid=100.0 if evaluation.label == best else 0.1)
        driver.tell(evaluation.id, good)
    assert driver.finished and driver.outcome.best == best


@pytest.mark.parametrize("name", ALL)
def test_failures_are_listed_and_the_sweep_continues(space, name):
    driver = sweep_by(space, name)
    run(driver, fail=lambda e: e.label == "paper" or e.label.endswith(" 3"))
    result = result_of(driver)
    failed = {t.evaluation.label for t in result.trials if t.failure}
    assert {"paper"} <= failed and result.require_best().label not in failed
    assert len([t for t in result.trials if t.failure]) == len(failed), "what failed is not asked for again"
    assert all(t.failure == "out of memory" for t in result.trials if t.failure)


def test_an_fid_that_is_not_a_number_is_a_failure(space):
    driver = driver_of(space)
    first, *others = driver.ask()
    driver.tell(first.id, dataclasses.replace(simulate(first), fid=float("nan")))
    for other in others:
        driver.tell(other.id, dataclasses.replace(simulate(other), influence=(math.inf,) * 10))
    assert [t.failure for t in driver.trials] == ["FID is nan"] + [f"FID is {simulate(e).fid}" for e in others]


@pytest.mark.parametrize("name", ALL)
def test_a_sweep_whose_every_trial_fails_ends_and_says_so(space, name):
    driver = sweep_by(space, name)
    run(driver, fail=lambda e: True)
    assert driver.outcome.best is None
    with pytest.raises(InputError, match="no winner"):
        result_of(driver).require_best()


def test_a_winner_whose_confirmation_fails_is_not_recommended_silently(space):
    driver = driver_of(space)
    run(driver, fail=lambda e: e.seeds == "confirm" and e.label != DETERMINISTIC)
    with pytest.raises(InputError, match="no winner"):
        result_of(driver).require_best()


def test_the_same_sampler_is_evaluated_once():
    more = "  again: {s_churn: 99, s_tmin: 0.05, s_tmax: 50, s_noise: 1.003}\n  none: {s_noise: 1.2}\n"
    driver = driver_of(SPACE + more)
    assert driver.search.registry.labels["again"] == "paper" and driver.search.registry.labels["none"] == DETERMINISTIC
    asked = run(driver)
    assert len(set(driver.search.registry.samplers.values())) == len(driver.search.registry.samplers)
    assert len({(e.settings, e.chunks, e.seeds) for e in asked}) == len(asked)


def test_the_result_survives_json_and_the_best_sampler_its_yaml(space):
    driver = driver_of(space)
    run(driver)
    result = result_of(driver)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["best"] == result.best
    assert settings_from_yaml(best_sampler_yaml(result, model="m")) == result.require_best().settings


def test_files_of_another_format_are_refused_in_words(space):
    driver = driver_of(space)
    run(driver)
    result = result_of(driver)
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["format"] == 2 and SweepResult.from_dict(content, "sweep.json") == result
    with pytest.raises(
        InputError, match=r"sweep\.json: format=1 is not allowed: this version of edm_ray reads format 2"
    ):
        SweepResult.from_dict({**content, "format": 1}, "sweep.json")
    text = best_sampler_yaml(result, model="m")
    assert text.splitlines()[2] == "format: 1"
    with pytest.raises(InputError, match=r"best\.yaml: format=7 is not allowed: this version of edm_ray reads format"):
        settings_from_yaml(text.replace("format: 1", "format: 7"), "best.yaml")


def test_without_a_gain_on_fresh_seeds_deterministic_sampling_is_recommended_and_the_winner_still_shown(space):
    driver = driver_of(space)
    while driver.stage != "confirm":
        for evaluation in driver.ask():
            driver.tell(evaluation.id, simulate(evaluation))
    assert driver.outcome.best != DETERMINISTIC
    for evaluation in driver.ask():
        worse = 0.0 if evaluation.label == DETERMINISTIC else 1.0
        driver.tell(evaluation.id, simulate(evaluation, fid=lambda settings, worse=worse: 5.0 + worse))
    result = result_of(driver)
    assert (result.found, result.best) == (driver.outcome.best, DETERMINISTIC)
    assert result.require_best().settings.s_churn == 0
    assert "no gain over deterministic sampling (difference +" in result.summary()[1]
    assert result.summary()[0].startswith("The search found, of ")


@pytest.mark.parametrize("name", ALL)
def test_a_spent_budget_ends_the_sweep_with_the_best_so_far(space, name):
    free = sweep_by(space, name)
    run(free)
    spent = result_of(free).images
    cut = sweep_by(space, name, budget_images=spent - 400)
    run(cut)
    result = result_of(cut)
    assert result.images <= spent - 400
    assert (
        result.require_best() and result.stopped and "used all the images it was allowed" in " ".join(result.summary())
    )


def test_by_default_the_race_never_takes_more_than_a_million_images(space):
    budget = Driver(space, SweepPlan()).search.budget
    assert budget.num_confirmed >= 3 and budget.most_images <= 1_000_000


def test_proposals_leave_a_share_of_a_small_budget_to_the_race(space):
    driver = driver_of(space, num_global=16, num_model=48, budget_images=13_000)
    run(driver)
    costs = {cost.stage: cost.images for cost in result_of(driver).costs}
    assert costs["model"] > 0 and costs["polish"] > 1500
    assert truth(best_of(driver)) < 5.1


@pytest.mark.parametrize("images", range(2600, 8000, 700))
def test_no_budget_is_ever_exceeded_and_all_confirm(space, images):
    driver = driver_of(space, budget_images=images)
    run(driver)
    result = result_of(driver)
    assert result.images <= images
    assert {result.found, DETERMINISTIC} <= {entry.label for entry in result.confirmed}


def test_a_budget_above_what_a_race_takes_at_most_does_not_lift_that_bound(space):
    """Nobody can be told apart, so the race would go on for ever."""
    how = {"num_finalists": 4, "max_chunks": 4, "num_line": 0, "num_global": 2, "num_model": 0, "z": 50.0, "tie": 1e-9}
    for images in (None, 10**9):
        driver = driver_of(space, **how, budget_images=images)
        said = int(re.search(r"at most ([0-9,]+) images", driver.describe()).group(1).replace(",", ""))
        assert said < 10_000
        run(driver, fid=lambda settings: 5.0)
        result = result_of(driver)
        assert result.images <= said and result.stopped


@pytest.mark.parametrize("name", ALL)
def test_a_budget_too_small_to_confirm_is_refused_before_anything_runs(space, name):
    with pytest.raises(InputError, match=r"budget_images=2,000 is too small to confirm anything") as caught:
        sweep_by(space, name, budget_images=2000)
    enough = int(re.search(r"give ([23],[0-9]+) or more", str(caught.value)).group(1).replace(",", ""))
    driver = sweep_by(space, name, budget_images=enough)
    run(driver)
    result = result_of(driver)
    assert result.images <= enough and {result.found, DETERMINISTIC} <= {entry.label for entry in result.confirmed}


def test_a_limit_in_network_evaluations_holds_and_is_refused_when_too_small(space):
    driver = driver_of(space)
    first = driver.ask()
    limit = 35 * 5000
    driver.search.budget.limit_evaluations(limit)
    for evaluation in first:
        driver.tell(evaluation.id, simulate(evaluation))
    run(driver)
    assert result_of(driver).evaluations <= limit and result_of(driver).stopped
    with pytest.raises(InputError, match="too little to confirm anything"):
        driver_of(space).search.budget.limit_evaluations(1000)


def test_replayed_in_another_process_the_same_answers_give_the_same_decisions(space, tmp_path):
    """What a killed sweep relies on: its chunks answer again, and it decides as before."""
    driver = driver_of(space, seed=3)
    asked = run(driver, world=5)
    code = (
        "import sys, json; sys.path.insert(0, '.')\n"
        "from tests.search.worlds import *\n"
        "s = driver_of(SPACE, seed=3); asked = run(s, world=5, order=lambda items: items[::-1])\n"
        "print(json.dumps([[e.id for e in asked], s.search.log.decisions, s.outcome.best]))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout) == [[e.id for e in asked], driver.search.log.decisions, driver.outcome.best]


def test_noise_that_hides_differences_makes_first_looks_longer(space):
    calm, noisy = driver_of(space, max_chunks=32), driver_of(space, max_chunks=32)
    run(calm)
    run(noisy, noise=(10.0, 60.0), world=1)
    assert calm.search.log.first_chunks == 2 and noisy.search.log.first_chunks == 8
    assert any("too noisy to tell settings apart" in line for line in noisy.search.log.decisions)


def test_costs_are_listed_by_stage_and_add_up(space):
    driver = driver_of(space)
    run(driver)
    result = result_of(driver)
    assert [cost.stage for cost in result.costs][-1] == "confirm"
    assert sum(cost.images for cost in result.costs) == result.images
    assert result.evaluations == 35 * result.images
    confirm = result.costs[-1]
    assert confirm.images == confirm.settings * CONFIRM_CHUNKS * CHUNK_SIZE


def test_plans_that_make_no_sense_are_refused():
    for changes in ({"max_chunks": 1}, {"num_finalists": 1}, {"z": 0}, {"objective": ("nfe",)}, {"chunk_size": 0}):
        with pytest.raises(InputError, match="not allowed"):
            sweep_plan(**changes)
