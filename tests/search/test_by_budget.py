"""A sweep by budget of network evaluations on simulated landscapes, without Ray or images."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edm_ray.diffusion.samplers import SOLVERS, Heun, sampler
from edm_ray.errors import InputError
from edm_ray.search.budget_space import at_budget, fitted
from edm_ray.search.by_budget import best_samplers_yaml, rows_of, sampler_at, summary, table
from edm_ray.search.driver import run as run_driver
from edm_ray.search.races import Races
from edm_ray.search.result import SweepResult, result_of
from edm_ray.search.sampler_file import settings_from_yaml
from edm_ray.search.space import load_space
from edm_ray.search.statistics import difference
from tests.search.worlds import SPACE, driver_of, run, simulate, space_from

FEW = """
name: few
sampler: {solver: deis, num_steps: 8}
search:
  solver: {choices: [dpmpp_2m, heun, deis]}
  rho: {low: 3, high: 7}
  churn_fraction: {low: 0, high: 1}
"""
BUDGETS = (5, 8, 18)


def races_of(text: str = FEW, budgets=BUDGETS, seed: int = 0, **changes) -> Races:
    space = space_from(text)
    return Races(
        [
            driver_of(at_budget(space, nfe), seed, **{"strategy": "random", "num_global": 24, **changes})
            for nfe in budgets
        ]
    )


def fid(settings) -> float:
    """Falls with the evaluations to 3; rho 5 is best; DEIS, the space's own solver, is worse, Heun far worse."""
    return (
        3
        + 20 * math.exp(-settings.nfe / 2)
        + abs(settings.rho - 5)
        + 5 * (settings.solver == "heun")
        + 3 * (settings.solver == "deis")
    )


@pytest.fixture(scope="module")
def races() -> Races:
    played = races_of()
    run(played, fid=fid)
    return played


@pytest.fixture(scope="module")
def results(races) -> list[SweepResult]:
    return [result_of(each) for each in races.drivers]


# -- steps from the budget -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [2, 3, 5, 8, 18, 35])
def test_every_sampler_of_the_default_space_takes_as_many_steps_as_its_budget_pays_for(nfe):
    space = at_budget(load_space("tune_spaces/any-budget.yaml"), nfe)
    rng, made = np.random.default_rng(0), []
    for _ in range(200):
        try:
            made.append(space.settings(space.at(rng.random(len(space.search)).tolist())))
        except InputError:
            continue  # an order above the number of steps
    assert len(made) > 60 and len({each.solver for each in made}) >= 7
    for each in [*made, space.sampler, *space.starts.values()]:
        assert each.nfe <= nfe < each.replace(num_steps=each.num_steps + 1).nfe


@pytest.mark.parametrize("solver", [name for name, cls in SOLVERS.items() if cls.__module__.startswith("edm_ray.")])
@pytest.mark.parametrize("guided", [{}, {"guidance": 2.0}, {"guidance": 2.0, "guidance_min": 0.3, "guidance_max": 5.0}])
def test_any_solver_keeps_to_its_budget_with_the_most_steps_or_says_that_it_cannot(solver, guided):
    for nfe in (1, 4, 9, 35):
        costs = {n: sampler(solver, num_steps=n, **guided).nfe for n in range(6, 2 * nfe + 2)}
        fitting = [n for n, cost in costs.items() if 0 < cost <= nfe]
        if fitting:
            assert fitted(lambda n: sampler(solver, num_steps=n, **guided), nfe).num_steps == max(fitting)
        if solver == "rk45":
            with pytest.raises(InputError, match="keeps to no budget"):
                fitted(lambda n: sampler("rk45", num_steps=n), nfe)


def test_churn_is_a_share_of_the_cap_at_the_steps_of_the_budget():
    made = at_budget(space_from(FEW), 35).settings({"solver": "heun", "rho": 7.0, "churn_fraction": 0.5})
    assert made.num_steps == 18 and made.s_churn == pytest.approx(made.churn_cap / 2)


def test_explicit_levels_keep_their_steps_and_are_no_sampler_above_the_budget():
    text = "name: t\nsampler: {solver: dpmpp_2m}\nsearch:\n  sigmas: {choices: [[], [80, 9, 1], [80, 20, 5, 1, 0.1]]}\n"
    space = at_budget(space_from(text), 4)
    assert [space.settings({"sigmas": levels}).num_steps for levels in ((), (80.0, 9.0, 1.0))] == [4, 3]
    with pytest.raises(InputError, match="5 steps take 5 evaluations, the budget is 4"):
        space.settings({"sigmas": (80.0, 20.0, 5.0, 1.0, 0.1)})


@pytest.mark.parametrize(
    ("search", "solver", "nfe", "says"),
    [
        ("rho: {low: 2, high: 9}", "heun", 2, "the solvers of t take 3 network evaluations or more"),
        ("rho: {low: 2, high: 9}", "euler", 1, "the solvers of t take 2 network evaluations or more"),
        ("num_steps: {grid: [4, 8]}", "heun", 8, "search.num_steps is not allowed with --nfe"),
    ],
)
def test_a_budget_that_no_solver_meets_is_refused_with_the_least_that_one_takes(search, solver, nfe, says):
    space = space_from(f"name: t\nsampler: {{solver: {solver}}}\nsearch:\n  {search}\n")
    with pytest.raises(InputError, match=says):
        at_budget(space, nfe)


def test_every_solver_of_the_space_and_heun_start_unsearched_and_starts_of_the_file_take_the_steps_of_the_budget():
    text = FEW + "starts:\n  low: {sigma_min: 0.02}\n"
    space = at_budget(space_from(text), 8)
    assert space.unsearched == ("heun", "dpmpp_2m", "deis") and space.starts["heun"] == Heun(num_steps=4)
    assert space.starts["low"].num_steps == 8 and space.starts["low"].sigma_min == 0.02
    assert space.paper == "heun" and at_budget(space_from(text), 2).paper is None


# -- races -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_of_one_race_decides_as_its_driver_alone():
    alone, races = driver_of(SPACE), Races([driver_of(SPACE)])
    run(alone)
    run_driver(races, simulate)
    assert races.drivers[0].outcome == alone.outcome and races.drivers[0].search.log == alone.search.log
    assert races.describe() == driver_of(SPACE).describe()


def test_each_budget_finds_and_confirms_its_own_sampler_heun_and_the_best_unsearched_solver(results):
    for nfe, result in zip(BUDGETS, results, strict=True):
        confirmed = {entry.label for entry in result.confirmed}
        assert result.nfe == nfe and {result.found, result.unsearched, result.paper} <= confirmed
        best = result.require_best().settings
        assert best.solver == "dpmpp_2m" and best.nfe <= nfe and abs(best.rho - 5) < 1.5
        assert result.of(result.paper).settings.solver == "heun"
        assert result.of(result.unsearched).settings == sampler("dpmpp_2m", num_steps=nfe).effective(None)


def test_what_wins_a_budget_starts_in_the_next_as_it_is_and_with_more_steps(races):
    for before, after in zip(races.drivers, races.drivers[1:], strict=False):
        winner = before.search.registry.samplers[before.outcome.best]
        labels = after.search.registry.labels
        started = [
            after.search.registry.samplers[labels[name]]
            for name in (f"of {before.nfe}", f"of {before.nfe}, more steps")
        ]
        assert started[0] == winner and started[1] == winner.replace(num_steps=after.nfe).effective(None)
        looked = {trial.evaluation.label for trial in after.trials}
        assert {labels[f"of {before.nfe}"], labels[f"of {before.nfe}, more steps"]} <= looked


def test_where_more_evaluations_are_worse_the_larger_budget_takes_the_smaller_ones_sampler():
    races = races_of(budgets=(5, 18))
    run(races, fid=lambda settings: 3 + settings.nfe + abs(settings.rho - 5))
    small, large = (result_of(each).require_best().settings for each in races.drivers)
    assert large.nfe <= 5 and large == small


def test_a_sampler_of_few_evaluations_that_a_larger_budget_finds_is_that_of_the_smaller_one_too():
    """The second race moves rho a little further, with as few evaluations."""
    races = races_of(budgets=(5, 18))

    def worth(settings) -> float:
        return 3 + settings.nfe + abs(settings.rho - 5) * (1 if races.current.nfe == 5 else 3)

    run(races, fid=worth)
    results = [result_of(each) for each in races.drivers]
    small, large = rows_of(results)
    assert large.best.settings.nfe <= 5 and small.best == large.best and small.nfe == 5
    assert small.against_largest is None and small.no_worse
    heun = results[0].of("heun")
    assert small.heun == heun and small.against_heun == difference(small.best.estimate, heun.estimate)
    assert sampler_at(best_samplers_yaml(results), 5) == sampler_at(best_samplers_yaml(results), 18)


def test_order_of_arrival_and_a_second_run_change_nothing(results):
    for order in (lambda items: items[::-1], lambda items: items):
        again = races_of()
        run(again, order=order, fid=fid)
        assert [result_of(each).confirmed for each in again.drivers] == [each.confirmed for each in results]


def test_rows_hold_the_paired_differences_and_say_no_worse_when_the_interval_does(results):
    rows = rows_of(results)
    assert [row.nfe for row in rows] == list(BUDGETS) and all(row.largest == 18 for row in rows)
    best = [result.require_best() for result in results]
    for row, result, entry in zip(rows, results, best, strict=True):
        assert row.against_heun == difference(entry.estimate, result.of("heun").estimate)
        assert row.against_unsearched == difference(entry.estimate, result.of(result.unsearched).estimate)
    for row, entry in zip(rows[:2], best, strict=False):
        assert row.against_largest == difference(entry.estimate, best[-1].estimate)
        assert row.margin == pytest.approx(best[-1].estimate.debiased / 100)
    near = dataclasses.replace(rows[0].against_largest, low=-1.0, high=rows[0].margin * 0.99)
    over = dataclasses.replace(near, high=rows[0].margin * 1.01)
    assert dataclasses.replace(rows[0], against_largest=near).no_worse
    assert not dataclasses.replace(rows[0], against_largest=over).no_worse
    assert not rows[0].no_worse and rows[-1].no_worse and rows[-1].against_largest is None
    told = summary(results)
    assert told[0].startswith("5 evaluations: solver dpmpp_2m") and "against 18 evaluations: difference +" in told[0]
    assert "no worse than" not in told[0] and len(table(rows)) == 3


def test_without_a_gain_on_fresh_seeds_the_best_unsearched_solver_is_recommended():
    """On the fresh seeds every searched rho is worse."""
    races = races_of(budgets=(8,))
    while not races.finished:
        for each in races.ask():
            fresh = each.seeds == "confirm"
            races.tell(each.id, simulate(each, fid=lambda s, f=fresh: 5 + abs(s.rho - (7 if f else 4))))
    result = result_of(races.drivers[0])
    assert result.found != result.unsearched and result.best == result.unsearched
    assert "no gain over the best unsearched solver" in " ".join(result.summary())


def test_a_budget_whose_evaluations_all_fail_is_said_and_the_others_have_their_rows():
    races = races_of()
    run(races, fid=fid, fail=lambda evaluation: races.current.nfe == 8)
    results = [result_of(each) for each in races.drivers]
    assert [row.nfe for row in rows_of(results)] == [5, 18]
    assert "8 evaluations: every evaluation failed." in summary(results)


def test_a_result_of_a_budget_survives_json(results):
    assert SweepResult.from_dict(results[0].to_dict(), "sweep.json") == results[0]


# -- best-samplers.yaml ----------------------------------------------------------------------------------------------


def test_the_file_gives_the_sampler_of_the_largest_budget_that_is_not_above(results):
    text = best_samplers_yaml(results, model="m")
    best = {result.nfe: result.require_best().settings for result in results}
    taken = {nfe: sampler_at(text, nfe) for nfe in (5, 7, 8, 17, 1000)}
    assert taken == {5: best[5], 7: best[5], 8: best[8], 17: best[8], 1000: best[18]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("samplers:\n- {nfe: 5, sampler: {}}\n- {nfe: 9, sampler: {}}\n", "--nfe 4 is not allowed: FILE has 5, 9"),
        ("sampler: {}\n", "FILE holds one sampler"),
        ("samplers: {}\n", "key 'samplers' must be a list"),
        ("samplers:\n- {nfe: five, sampler: {}}\n", "key 'samplers' must be a list"),
        ("samplers:\n- {nfe: 4, sampler: {rho: -1}}\n", "FILE: nfe 4: sampler.rho=-1"),
        ("format: 2\nsamplers: []\n", "format=2 is not allowed"),
    ],
)
def test_a_file_without_a_row_for_the_budget_is_refused_in_words(text, says):
    with pytest.raises(InputError, match=says):
        sampler_at(text, 4, "FILE")


def test_a_file_of_many_samplers_asks_for_a_budget(results):
    with pytest.raises(InputError, match="give --nfe to take one"):
        settings_from_yaml(best_samplers_yaml(results))


def test_the_budgets_share_the_evaluations_of_a_limit_by_what_they_cost():
    races = races_of()
    races.limit_evaluations(31_000_000)
    spent = [each.search.budget._given_evaluations for each in races.drivers]
    assert spent == [5_000_000, 8_000_000, 18_000_000]
    run(races, fid=fid)
    assert [each.search.budget._given_evaluations for each in races.drivers] == spent, (
        "also after a race was begun again"
    )


@pytest.mark.parametrize("changes", [{"strategy": "race", "budget_images": 6000}, {"strategy": "race"}, {}])
def test_a_sweep_by_budget_never_spends_more_than_it_says(changes):
    races = races_of(**changes)
    most = races.most_images
    assert f"{most:,} in all" in races.describe()
    run(races, fid=fid)
    assert sum(result_of(each).images for each in races.drivers) <= most
    if not changes:
        assert not any(each.search.log.stopped for each in races.drivers), "what is inherited is paid for"


def test_a_budget_above_any_number_of_steps_is_met_with_the_most_steps():
    assert fitted(lambda count: sampler("euler", num_steps=count), 10**6).num_steps == 10_000
