"""The interval of Young and Daly against a simulation of the process itself; and the pace that a run keeps by it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.training.checkpoint_interval import ASSUMED_COST_S, Pace, best_interval, lost_share
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.run import claim_run
from edm_ray.training.signals import Signal
from tests.training.faults import SETTINGS, result_of


def simulated(interval: float, cost: float, mtbf: float, restart: float, hours: float = 4000.0) -> float:
    """Part of the time that is lost, event by event: a failure at any moment, also while restarting or saving, loses
    what is not saved, and takes a restart."""
    rng, now, kept, end = np.random.default_rng(0), 0.0, 0.0, hours * 3600
    failure, ready = rng.exponential(mtbf), 0.0
    while now < end:
        saved = max(now, ready) + interval + cost
        if saved <= failure:
            now, kept = saved, kept + interval
        else:
            now, ready = failure, failure + restart
            failure = now + rng.exponential(mtbf)
    return 1 - kept / now


@pytest.mark.parametrize("restart", [0.0, 60.0])
@pytest.mark.parametrize(("interval", "cost", "mtbf"), [(30, 1, 300), (600, 5, 2700), (100, 20, 120), (900, 2, 1800)])
def test_the_share_that_is_lost_is_that_of_the_process(interval, cost, mtbf, restart) -> None:
    assert lost_share(interval, cost, mtbf, restart) == pytest.approx(
        simulated(interval, cost, mtbf, restart), rel=0.02
    )


@pytest.mark.parametrize(("cost", "mtbf"), [(0.2, 2700), (1, 60), (10, 100), (100, 300), (0.01, 1e6)])
def test_no_other_interval_loses_noticeably_less(cost, mtbf) -> None:
    best = best_interval(cost, mtbf)
    least = min(lost_share(float(other), cost, mtbf, 30.0) for other in np.geomspace(best / 30, best * 30, 4000))
    assert lost_share(best, cost, mtbf, 30.0) <= least * 1.002
    assert lost_share(best, cost, mtbf) < min(lost_share(best / 2, cost, mtbf), lost_share(2 * best, cost, mtbf))


def test_where_checkpoints_are_cheap_it_is_youngs_interval_and_where_they_are_dear_it_is_not() -> None:
    assert best_interval(0.01, 1e5) == pytest.approx(math.sqrt(2 * 0.01 * 1e5), rel=1e-3)
    young = math.sqrt(2 * 100 * 300)
    assert lost_share(best_interval(100, 300), 100, 300) < lost_share(young, 100, 300) - 0.005
    assert best_interval(500, 100) == 100, "dearer than two failures are apart"


def test_failures_that_come_faster_than_anything_is_saved_lose_everything() -> None:
    assert lost_share(1e6, 1, 1) == pytest.approx(1.0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def asked(pace: Pace, clock: Clock, cost: float, writing: float, seconds: int) -> list[int]:
    """When it asks, where each checkpoint that it asks for is made."""
    moments, began = [], clock.now
    for _ in range(seconds):
        clock.now += 1
        if pace.ask() is Signal.SAVE:
            pace.saved(cost, writing)
            moments.append(round(clock.now - began))
    return moments


def test_a_run_asks_at_the_best_interval_for_what_a_checkpoint_costs_it() -> None:
    clock = Clock()
    moments = asked(Pace(300.0, clock), clock, 0.1, 0.2, 120)
    assert moments[0] == math.ceil(best_interval(ASSUMED_COST_S, 300)), "nothing is measured yet"
    assert {after - before for before, after in pairwise(moments)} == {math.ceil(best_interval(0.1, 300))}


def test_slow_storage_gets_as_much_time_again_as_a_checkpoint_took_it() -> None:
    clock = Clock()
    moments = asked(Pace(300.0, clock), clock, 0.1, 30.0, 400)
    assert {after - before for before, after in pairwise(moments)} == {60}


def test_without_failures_it_never_asks_and_a_checkpoint_of_the_schedule_counts() -> None:
    clock = Clock()
    assert asked(Pace(0.0, clock), clock, 0.1, 0.1, 10_000) == []
    pace = Pace(300.0, clock)
    for _ in range(100):
        clock.now += 5
        assert pace.ask() is Signal.NONE
        pace.saved(1.0, 0.0)


def test_checkpoints_between_ticks_change_no_number(digits_dir, tmp_path, monkeypatch) -> None:
    """Failures each 2 ms: one after nearly every step."""
    dataset = open_dataset(str(digits_dir / "train"))
    config, saved = configure(tiny(dataset.shape), None, SETTINGS), list[int]()
    original = CheckpointStore.save
    monkeypatch.setattr(
        CheckpointStore, "save", lambda self, seen, *rest: (saved.append(seen), original(self, seen, *rest))[1]
    )
    results, moments = [], []
    for mtbf_s in (0.0, 0.002):
        uri = str(tmp_path / str(mtbf_s))
        claim_run(uri, config, dataset)
        train(TrainingJob(config=config, dataset=dataset, run_uri=uri, mtbf_s=mtbf_s))
        results.append({name: part for name, part in result_of(uri).items() if name != "checkpoints"})
        moments.append(saved.copy())
        saved.clear()
    assert results[0] == results[1]
    assert set(moments[0]) < set(moments[1]) and any(seen % 48 for seen in moments[1]), "between ticks too"
