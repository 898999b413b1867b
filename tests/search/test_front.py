"""Two objectives: FID and network evaluations."""

from __future__ import annotations

import json

import pytest
import yaml

from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.search.objective import front
from edm_ray.search.plan import STRATEGIES
from edm_ray.search.result import result_of
from edm_ray.search.sampler_file import best_sampler_yaml, settings_from_yaml
from tests.search.test_statistics import estimate
from tests.search.worlds import driver_of, run

SPACE = """
name: steps
search:
  num_steps: {low: 4, high: 24, integer: true}
  rho: {low: 3, high: 11}
sampler: {num_steps: 18}
"""
BOTH = {"objective": ("fid", "nfe"), "within": 5.0, "num_line": 0, "grid_points": 6, "num_finalists": 8}


def fid(settings: Sampler) -> float:
    """Falls with the steps, levels off; best rho is 7 for each."""
    return 3.0 + 40.0 / settings.num_steps**2 + 0.05 * (settings.rho - 7) ** 2


def test_the_front_leaves_out_what_something_cheaper_beats():
    settings = {f"{n}": sampler(num_steps=n) for n in (4, 8, 12, 16)}
    found = {"12": estimate([1.0] * 4), "16": estimate([1.1] * 4), "8": estimate([1.2] * 4), "4": estimate([9.0] * 4)}
    assert front(found, settings) == ["4", "8", "12"]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_names_a_front_and_the_cheapest_within(name):
    driver = driver_of(SPACE, **BOTH, strategy=name)
    run(driver, fid=fid)
    result, samplers = result_of(driver), driver.search.registry.samplers
    costs = [samplers[label].nfe for label in result.front]
    assert costs == sorted(set(costs)) and result.found in result.front
    cheapest = samplers[result.cheapest]
    assert fid(cheapest) < 1.06 * fid(samplers[result.found])
    assert cheapest.nfe <= samplers[result.found].nfe
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_race_keeps_cheap_settings_that_one_objective_would_drop():
    plan = {**BOTH, "num_global": 12}
    both = driver_of(SPACE, **plan)
    run(both, fid=fid)
    single = driver_of(SPACE, **{**plan, "objective": ("fid",)})
    run(single, fid=fid)
    assert single.outcome.front == () and single.outcome.cheapest is None
    line = both.outcome.front
    assert len(line) >= 3 and both.search.registry.samplers[line[0]].nfe < 20
    result = result_of(both)
    best, cheap = result.of(result.found), result.of(result.cheapest)
    assert cheap.settings.nfe < 0.7 * best.settings.nfe and fid(cheap.settings) < 1.06 * fid(best.settings)


def test_alternatives_are_in_the_sampler_file_and_the_best_is_still_read():
    driver = driver_of(SPACE, **BOTH)
    run(driver, fid=fid)
    result, samplers = result_of(driver), driver.search.registry.samplers
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
        assert again == samplers[entry["label"]]
