"""The decisions of a sweep on simulated landscapes, without Ray or images."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.controller import DETERMINISTIC, SweepController, SweepPlan
from edm_ray.search.result import best_sampler_yaml, result_of, settings_from_yaml
from edm_ray.search.space import load_space

SPACE = """
name: test
churn_fraction: {low: 0, high: 1}
s_tmin: {low: 0.01, high: 0.5, scale: log}
s_tmax: {low: 1, high: 80, scale: log}
s_noise: {low: 1.0, high: 1.01}
starts:
  paper: {s_churn: 40, s_tmin: 0.05, s_tmax: 50, s_noise: 1.003}
"""
PLAN = SweepPlan(chunk_size=100, initial_chunks=2, max_chunks=8, num_line=4, num_global=8, confirm_chunks=10)


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return load_space(str(path))


def truth(settings: SamplerSettings) -> float:
    """Best near S_churn = 4."""
    return 5.0 + 0.1 * (settings.s_churn - 4.0) ** 2 + 20 * abs(settings.s_noise - 1.0)


def simulate(evaluation, world=0):
    """Ten leave-one-out FIDs with noise shared by all settings (the seeds) and a little of their own."""
    n = evaluation.chunks * 100
    shared = np.random.default_rng([world, 1, len(evaluation.seeds), n]).normal(size=10)
    own = np.random.default_rng([world, 2, n, *evaluation.id.encode()]).normal(size=10)
    groups = truth(evaluation.settings) + (10.0 * shared + 0.5 * own) / math.sqrt(n / 10)
    mean = groups.mean()
    lo = (groups.sum() - groups) / 9
    se = math.sqrt(0.9 * ((lo - lo.mean()) ** 2).sum())
    return FidEstimate(
        fid=mean + 100 / n, debiased=mean, se=se, n=n, leave_one_out=tuple(lo), reference="r", extractor="e"
    )


def run(controller, order=lambda items: items, world=0, fail=lambda e: False):
    asked = []
    while not controller.finished:
        batch = controller.ask()
        assert batch, "the controller waits for nothing"
        asked += batch
        for evaluation in order(list(batch)):
            if fail(evaluation):
                controller.tell_failure(evaluation.id, "out of memory")
            else:
                controller.tell(evaluation.id, simulate(evaluation, world), seconds=1.0)
    return asked


def test_the_sweep_finds_the_best_of_its_settings_or_one_as_good(space):
    hits = 0
    for world in range(40):
        controller = SweepController(space, PLAN)
        run(controller, world=world)
        regret = truth(controller.settings[controller.best]) / min(map(truth, controller.settings.values())) - 1
        hits += regret < 0.02
    assert hits >= 38


def test_the_order_of_arrival_changes_no_decision(space):
    controllers = [SweepController(space, PLAN) for _ in range(3)]
    run(controllers[0])
    run(controllers[1], order=lambda items: items[::-1])
    run(controllers[2], order=lambda items: sorted(items, key=lambda e: hash(e.id)))
    assert len({tuple(c.decisions) for c in controllers}) == 1 and len({c.best for c in controllers}) == 1


def test_confirmation_uses_fresh_seeds_and_decides_nothing(space):
    controller = SweepController(space, PLAN)
    while controller.stage != "confirm":
        for evaluation in controller.ask():
            assert evaluation.seeds == "search"
            controller.tell(evaluation.id, simulate(evaluation))
    best = controller.best
    for evaluation in controller.ask():
        assert evaluation.seeds == "confirm"
        good = dataclasses.replace(simulate(evaluation), fid=100.0 if evaluation.label == best else 0.1)
        controller.tell(evaluation.id, good)
    assert controller.finished and controller.best == best


def test_the_sweep_never_costs_more_than_it_said(space):
    for world in range(10):
        controller = SweepController(space, PLAN)
        run(controller, world=world)
        assert result_of(controller).images <= PLAN.max_images(len(space.starts))


def test_failures_are_listed_and_the_sweep_goes_on(space):
    controller = SweepController(space, PLAN)
    run(controller, fail=lambda e: e.label in ("churn 2/4", "global 3"))
    result = result_of(controller)
    failed = {t.evaluation.label for t in result.trials if t.failure}
    assert failed == {"churn 2/4", "global 3"} and result.require_best().label not in failed


def test_an_fid_that_is_not_a_number_is_a_failure(space):
    controller = SweepController(space, PLAN)
    first = controller.ask()[0]
    controller.tell(first.id, dataclasses.replace(simulate(first), fid=float("nan")))
    assert controller.answers[first.id].failure == "FID is nan"


def test_a_sweep_whose_every_trial_fails_ends_and_says_so(space):
    controller = SweepController(space, PLAN)
    run(controller, fail=lambda e: True)
    assert controller.best is None
    with pytest.raises(InputError, match="no winner"):
        result_of(controller).require_best()


def test_the_same_sampler_is_evaluated_once(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        SPACE + "  again: {s_churn: 99, s_tmin: 0.05, s_tmax: 50, s_noise: 1.003}\n  none: {s_noise: 1.2}\n"
    )
    controller = SweepController(load_space(str(path)), PLAN)
    assert controller.labels["again"] == "paper" and controller.labels["none"] == DETERMINISTIC
    assert len(set(controller.settings.values())) == len(controller.settings)


def test_the_result_survives_json_and_the_best_sampler_its_yaml(space):
    controller = SweepController(space, PLAN)
    run(controller)
    result = result_of(controller)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["best"] == result.best
    assert settings_from_yaml(best_sampler_yaml(result, model="m")) == result.require_best().settings
    n = PLAN.confirm_chunks * PLAN.chunk_size
    assert all(entry.estimate.n == n for entry in result.confirmed) and f"on {n} fresh images" in result.summary()[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\nchurn_fractoin: {low: 0, high: 1}\n", "did you mean 'churn_fraction'"),
        ("name: x\ns_tmin: {low: 1, high: 0.5}\n", "low < high"),
        ("name: x\ns_tmin: {low: 0, high: 1, scale: log}\n", "greater than 0"),
        ("name: x\ns_tmin: {low: 0.1, high: 2}\ns_tmax: {low: 1, high: 5}\n", r"s_tmin\.high=2.* is not allowed"),
        ("name: x\nsampler: {s_churn: 3}\n", r"sampler\.s_churn=3"),
        ("name: x\nname: y\n", "given twice"),
        ("s_tmin: {low: 0.1, high: 1}\n", "'name' is missing"),
        ("name: x\nstarts: {a: {s_chrun: 1}}\n", "did you mean 's_churn'"),
    ],
)
def test_a_wrong_space_names_the_file_and_the_key(tmp_path, text, says):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        load_space(str(path))


def test_the_spaces_that_ship_can_be_read():
    from pathlib import Path

    for path in Path("tune_spaces").glob("*.yaml"):
        assert load_space(str(path)).name == path.stem


def test_without_a_gain_on_fresh_seeds_deterministic_sampling_is_recommended_and_the_winner_still_shown(space):
    controller = SweepController(space, PLAN)
    while controller.best is None:
        for evaluation in controller.ask():
            controller.tell(evaluation.id, simulate(evaluation))
    assert controller.best != DETERMINISTIC
    for evaluation in controller.ask():
        good = simulate(dataclasses.replace(evaluation, settings=SamplerSettings(s_churn=4.0)))
        worse = 0.0 if evaluation.label == DETERMINISTIC else 1.0
        groups = tuple(value + worse for value in good.leave_one_out)
        controller.tell(evaluation.id, dataclasses.replace(good, debiased=good.debiased + worse, leave_one_out=groups))
    result = result_of(controller)
    assert (result.found, result.best) == (controller.best, DETERMINISTIC)
    assert result.require_best().settings.s_churn == 0
    assert "no gain over deterministic sampling (difference +" in result.summary()[1]
    assert result.summary()[0].startswith("The search found, of ")
