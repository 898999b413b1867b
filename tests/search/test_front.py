"""Two objectives: FID and network evaluations."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.search.result import best_sampler_yaml, result_of, settings_from_yaml
from edm_ray.search.strategies import STRATEGIES, make_strategy
from edm_ray.search.strategy import front
from tests.search.test_statistics import estimate
from tests.search.worlds import PLAN, run, space_from

SPACE = """
name: steps
search:
  num_steps: {low: 4, high: 24, integer: true}
  rho: {low: 3, high: 11}
sampler: {num_steps: 18}
"""
PLAN = dataclasses.replace(PLAN, objective=("fid", "nfe"), within=5.0, num_line=0, grid_points=6, num_finalists=8)


def fid(settings: Sampler) -> float:
    """Falls with the steps, levels off; best rho is 7 for each."""
    return 3.0 + 40.0 / settings.num_steps**2 + 0.05 * (settings.rho - 7) ** 2


def test_the_front_leaves_out_what_something_cheaper_beats():
    settings = {f"{n}": sampler(num_steps=n) for n in (4, 8, 12, 16)}
    found = {"12": estimate([1.0] * 4), "16": estimate([1.1] * 4), "8": estimate([1.2] * 4), "4": estimate([9.0] * 4)}
    assert front(found, settings) == ["4", "8", "12"]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_names_a_front_and_the_cheapest_within(name):
    strategy = make_strategy(space_from(SPACE), dataclasses.replace(PLAN, strategy=name))
    run(strategy, fid=fid)
    result = result_of(strategy)
    costs = [strategy.settings[label].nfe for label in result.front]
    assert costs == sorted(set(costs)) and result.found in result.front
    cheapest = strategy.settings[result.cheapest]
    assert fid(cheapest) < 1.06 * fid(strategy.settings[result.found])
    assert cheapest.nfe <= strategy.settings[result.found].nfe
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_race_keeps_cheap_settings_that_one_objective_would_drop():
    plan = dataclasses.replace(PLAN, num_global=12)
    both = make_strategy(space_from(SPACE), plan)
    run(both, fid=fid)
    single = make_strategy(space_from(SPACE), dataclasses.replace(plan, objective=("fid",)))
    run(single, fid=fid)
    assert single.front == [] and single.cheapest is None
    assert len(both.front) >= 3 and both.settings[both.front[0]].nfe < 20
    result = result_of(both)
    best, cheap = result.of(result.found), result.of(result.cheapest)
    assert cheap.settings.nfe < 0.7 * best.settings.nfe and fid(cheap.settings) < 1.06 * fid(best.settings)


def test_alternatives_are_in_the_sampler_file_and_the_best_is_still_read():
    strategy = make_strategy(space_from(SPACE), PLAN)
    run(strategy, fid=fid)
    result = result_of(strategy)
    text = best_sampler_yaml(result, model="m")
    content = yaml.safe_load(text)
    assert settings_from_yaml(text) == result.require_best().settings
    alternatives = content["alternatives"]
    assert [entry["nfe"] for entry in alternatives] == sorted(entry["nfe"] for entry in alternatives)
    chosen = [entry for entry in alternatives if entry["cheapest_within_percent"]]
    if result.cheapest != result.best:
        assert [entry["label"] for entry in chosen] == [result.cheapest]
    for entry in alternatives:
        again = settings_from_yaml(yaml.safe_dump({"sampler": entry["sampler"]}))
        assert again == strategy.settings[entry["label"]]
