"""Candidates and refinement of noise levels at a budget, on simulated landscapes."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

from edm_ray.diffusion.analysis.trajectories import Trajectories
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.diffusion.samplers.levels import edm_levels
from edm_ray.search.budget_space import at_budget
from edm_ray.search.candidates import MOST_CANDIDATES, MOST_STEPS, candidates, wants_candidates
from edm_ray.search.levels import moved, stretched, with_levels
from edm_ray.search.races import Races
from edm_ray.search.result import result_of
from tests.search.worlds import driver_of, run, space_from

SPACE = """
name: few
sampler: {solver: dpmpp_2m, num_steps: 8}
search:
  solver: {choices: [dpmpp_2m, deis, heun]}
  rho: {low: 3, high: 9}
  afs: {choices: [false, true]}
"""
BEST = (60.0, 9.0, 1.2, 0.3, 0.02)


def fid(settings: Sampler) -> float:
    """Least where five levels are those of ``BEST``."""
    levels = settings.noise_levels()
    if len(levels) != len(BEST):
        return 9.0
    return 2.0 + 0.3 * sum(math.log(a / b) ** 2 for a, b in zip(levels, BEST, strict=True))


@functools.cache
def race(text: str = SPACE, nfe: int | None = 5, **changes):
    space = space_from(text)
    driver = driver_of(space if nfe is None else at_budget(space, nfe), **{"max_chunks": 16, **changes})
    run(driver, fid=fid, noise=(2.0, 0.1))
    return driver


def test_refined_levels_are_better_than_any_of_the_space():
    refined, plain = race(), race(refine=False)
    found, without = (result_of(each).require_best().settings for each in (refined, plain))
    assert found.sigmas and not without.sigmas and found.nfe <= 5
    assert fid(found) < fid(without) - 0.1
    assert {trial.evaluation.stage for trial in refined.trials} - {
        trial.evaluation.stage for trial in plain.trials
    } == {"refine"}


def test_a_search_without_a_budget_of_evaluations_refines_nothing():
    assert "refine" not in {trial.evaluation.stage for trial in race(nfe=None).trials}


def test_refinement_ends_within_the_images_given_and_leaves_a_final_race():
    driver = race(budget_images=16_000)
    result = result_of(driver)
    assert result.images <= 16_000
    stages = [trial.evaluation.stage for trial in driver.trials]
    assert "refine" in stages and "confirm" in stages


def test_results_of_moves_may_come_in_any_order():
    calm, turned = race(), driver_of(at_budget(space_from(SPACE), 5), max_chunks=16)
    run(turned, order=lambda batch: batch[::-1], fid=fid, noise=(2.0, 0.1))
    assert result_of(turned).require_best() == result_of(calm).require_best()


def test_a_failed_start_of_a_round_ends_the_refinement():
    driver = driver_of(at_budget(space_from(SPACE), 5), max_chunks=16)
    run(driver, fid=fid, noise=(2.0, 0.1), fail=lambda asked: asked.stage == "refine")
    assert result_of(driver).best is not None


@pytest.mark.parametrize("share", [-0.99, -0.4, 0.1, 0.99])
def test_moved_levels_keep_descending(share: float):
    for index in range(len(BEST)):
        made = moved(BEST, index, share)
        assert all(a > b > 0 for a, b in itertools.pairwise(made))
        assert [k for k, (a, b) in enumerate(zip(made, BEST, strict=True)) if not math.isclose(a, b)] == [index]
        assert (made[index] > BEST[index]) == (share > 0)


def test_stretched_levels_keep_their_ends_and_their_curve():
    assert stretched(BEST, len(BEST)) == pytest.approx(list(BEST))
    more = stretched(BEST, 9)
    assert more[0] == BEST[0] and more[-1] == BEST[-1] and more[::2] == pytest.approx(list(BEST))
    assert all(a > b for a, b in itertools.pairwise(more))


def test_levels_that_no_model_takes_are_no_sampler():
    assert with_levels(sampler("dpmpp_2m"), [5.0, 5.0, 1.0]) is None
    made = with_levels(sampler("dpmpp_2m", rho=3.0, sigma_max=40.0), BEST)
    assert made is not None and made.sigmas == BEST and made.num_steps == len(BEST)


def test_what_is_found_is_told_by_its_levels_alone():
    space = at_budget(space_from(SPACE), 5)
    told = space.describe(sampler("dpmpp_2m", sigmas=BEST))
    assert told == {"solver": "dpmpp_2m", "afs": "no", "sigmas": "60 9 1.2 0.3 0.02"}


def test_a_race_gets_the_levels_of_a_smaller_budget_stretched():
    space = at_budget(space_from(SPACE), 9)
    found = sampler("dpmpp_2m", sigmas=BEST)
    starts = space.starting_with("of 5", found).starts
    assert starts["of 5"] == found
    assert starts["of 5, more steps"].nfe == 9
    assert starts["of 5, more steps"].noise_levels() == pytest.approx(stretched(BEST, 9))


# -- stage 0 -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectories() -> Trajectories:
    """Of a Gaussian of deviation 0.5, in closed form: x = z sqrt(0.25 + sigma^2), D = x / (1 + 4 sigma^2)."""
    levels = edm_levels(0.002, 80.0, 32, 7.0)
    states = np.sqrt(0.25 + np.square(levels))
    rows = np.concatenate([states, states / (1 + 4 * np.square(levels))])
    return Trajectories(tuple(levels), np.outer(rows, rows))


@pytest.mark.parametrize("nfe", [4, 5, 8, 18])
def test_candidates_keep_to_the_budget(nfe: int, trajectories: Trajectories):
    space = at_budget(space_from(SPACE), nfe)
    found = candidates(space, trajectories)
    assert wants_candidates(space) and 2 < len(found) <= MOST_CANDIDATES
    for label, each in found.items():
        assert label.startswith("levels of ") and each.sigmas and each.nfe <= nfe and each.solver != "heun"
    assert any(each.afs for each in found.values())  # type: ignore[attr-defined]


def test_there_are_none_with_many_steps_or_guidance_or_without_such_a_solver(trajectories: Trajectories):
    guided = SPACE.replace("rho: {low: 3, high: 9}", "guidance: {low: 1, high: 3}")
    heun = SPACE.replace("[dpmpp_2m, deis, heun]", "[heun]").replace("solver: dpmpp_2m", "solver: heun")
    heun = heun.replace("  afs: {choices: [false, true]}\n", "")
    assert not wants_candidates(at_budget(space_from(SPACE), MOST_STEPS + 1))
    assert not wants_candidates(at_budget(space_from(guided), 8))
    assert not wants_candidates(at_budget(space_from(heun), 9))


def test_a_model_that_diverges_gives_none(trajectories: Trajectories):
    broken = Trajectories(trajectories.levels, trajectories.products * np.nan)
    assert candidates(at_budget(space_from(SPACE), 5), broken) == {}


def test_races_begin_with_the_candidates_and_count_them(trajectories: Trajectories):
    drivers = [driver_of(at_budget(space_from(SPACE), nfe)) for nfe in (5, 30)]
    races = Races(drivers)
    assert races.wants_candidates
    most = races.most_images
    races.propose(trajectories)
    given = races.drivers[0].search.registry.given
    assert [label for label in given if label.startswith("levels of")]
    assert races.drivers[1] is drivers[1], "at thirty evaluations nothing is proposed"
    asked = run(races, fid=fid)
    assert {each.label for each in asked} >= {label for label in given if label.startswith("levels of")}
    assert sum(result_of(each).images for each in races.drivers) <= most


def test_the_same_trajectories_give_the_same_candidates(trajectories: Trajectories):
    space = at_budget(space_from(SPACE), 6)
    assert candidates(space, trajectories) == candidates(space, trajectories)
