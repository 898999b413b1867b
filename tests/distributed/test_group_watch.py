"""Who of a training is taken for stuck: decided from signs of life and a clock, both made up here."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from edm_ray.distributed import group_watch
from edm_ray.distributed.group_watch import GroupWatch, _look_at
from edm_ray.distributed.heart import CONTROLLER, Beat, started
from edm_ray.distributed.patience import Patience
from edm_ray.training.pulse import Pulse, Reading, place_of
from tests.training.faults import ALONE, TrainingJob, claim_run, configure, open_dataset, tiny, train

PATIENCE = Patience()
WORKING = Reading(steps=400, images_seen=9600, idle_s=0.1, usual_s=0.2, slowest_s=3.0, where="edm_ray/x.py:1 (f)")


def _beat(who: str, number: int, reading: Reading = WORKING, pid: int = 0) -> Beat:
    pid = pid or 100 + int(who if who.isdecimal() else 99)
    return Beat(who=who, of=2, host="node-a", pid=pid, started="7", node="n", number=number, reading=reading)


def _play(beats, seconds: int, watch: GroupWatch | None = None, begin: float = 0.0):
    """(second, rank, whether it is ended, line) of all findings; ``beats(second)`` is what is seen then."""
    watch, found = watch or GroupWatch(PATIENCE), []
    for second in range(0, seconds, 2):
        for finding in watch.look(beats(second), begin + second):
            found.append((second, finding.beat.who, finding.end, finding.line))
    return found


def test_a_rank_that_gives_no_sign_is_named_within_a_minute_and_ended_after_as_long_again():
    """The other rank waits for it, and is not accused."""

    def beats(second):
        alive = replace(WORKING, idle_s=max(0.1, second - 20), waits=True)
        return [_beat("0", second, alive), _beat("1", min(second, 20))]

    (named, ended) = _play(beats, 200)
    assert named[:3] == (66, "1", False) and ended[:3] == (110, "1", True)
    assert named[0] - 20 <= 60 - group_watch.NODE_ANSWERS_S
    for words in ("rank 1 of 2 on node-a, process 101", "has not answered since", "last step 400", "(9,600 images)"):
        assert words in named[3]
    assert "the group starts again from its checkpoint" in named[3]


def test_a_rank_that_makes_no_step_is_named_with_where_it_is_and_ended_after_the_stated_time():
    """It gives signs; the other waits for it in the exchange of gradients."""

    def beats(second):
        idle = max(0.1, second - 10.0)
        there = replace(WORKING, idle_s=idle, where="edm_ray/training/step.py:9 (take)", waits=True)
        stuck = replace(WORKING, idle_s=idle, where="edm_ray/data/reader.py:200 (take)")
        return [_beat("0", second, there), _beat("1", second, stuck)]

    (named, ended) = _play(beats, 900)
    assert named[:3] == (56, "1", False) and ended[:3] == (730, "1", True)
    assert "no step since" in named[3] and "it is at edm_ray/data/reader.py:200 (take)" in named[3]
    assert "the slowest of the last ones took 0.2 s" in named[3]


def test_the_rank_with_fewer_steps_is_the_one_the_others_wait_for():
    behind = replace(WORKING, steps=399, idle_s=60.0, waits=True)
    watch = GroupWatch(PATIENCE)
    (finding,) = watch.look([_beat("0", 1, replace(WORKING, idle_s=59.0)), _beat("1", 1, behind)], 0.0)
    assert finding.beat.who == "1"


def test_steps_that_are_slow_by_nature_are_not_late():
    slow = Reading(steps=30, images_seen=720, idle_s=250.0, usual_s=30.0, slowest_s=40.0)
    assert _play(lambda second: [_beat("0", second, slow)], 60) == []
    late = replace(slow, idle_s=301.0)
    (found,) = _play(lambda second: [_beat("0", second, late)], 60)
    assert not found[2]


def test_the_start_may_take_longer_than_a_step():
    """Shards are fetched, kernels compiled."""
    starting = Reading(idle_s=800.0)
    assert _play(lambda second: [_beat("0", second, starting)], 60) == []
    (found,) = _play(lambda second: [_beat("0", second, replace(starting, idle_s=901.0))], 60)
    assert "no step yet" in found[3]
    (found,) = _play(lambda second: [_beat("0", second, replace(starting, idle_s=1801.0))], 60)
    assert found[2]


def test_a_rank_that_waits_for_storage_is_named_and_not_ended():
    """Storage has time-outs of its own, and may be slow for as long as it likes."""
    storing = replace(WORKING, idle_s=4000.0, storing=True)
    waiting = replace(WORKING, idle_s=4000.0, waits=True)
    (found,) = _play(lambda second: [_beat("0", second, storing), _beat("1", second, waiting)], 100)
    assert found[1:3] == ("0", False) and "a rank waits for storage" in found[3]


def test_a_watcher_that_was_stopped_itself_accuses_nobody():
    watch = GroupWatch(PATIENCE)
    assert _play(lambda second: [_beat("0", second)], 20, watch) == []
    assert watch.look([_beat("0", 18)], 4000.0) == [], "nobody could be heard meanwhile"
    assert watch.look([_beat("0", 19)], 4002.0) == []


def test_a_silent_controller_is_named_and_ended_like_a_rank():
    (named, ended) = _play(lambda second: [_beat("0", second), _beat(CONTROLLER, min(second, 4))], 120)
    assert named[1:3] == (CONTROLLER, False) and ended[1:3] == (CONTROLLER, True)
    assert "Ray Train's controller on node-a" in named[3] and "step" not in named[3]


def test_who_came_after_one_that_was_ended_is_judged_anew():
    watch = GroupWatch(PATIENCE)
    assert [each[2] for each in _play(lambda second: [_beat("1", 3)], 120, watch)] == [False, True]
    assert _play(lambda second: [_beat("1", second, pid=500)], 120, watch, begin=120) == []


def test_a_sign_after_all_takes_the_accusation_back():
    watch = GroupWatch(PATIENCE)

    def beats(second):
        return [_beat("1", 1 if second < 60 else second)]

    assert [each[2] for each in _play(beats, 100, watch)] == [False]


def test_ranks_whose_group_lost_one_are_not_accused_before_it_starts_again():
    """A node died, Ray Train has not noticed yet: the rank that is left waits, and is not late."""
    watch, lost = GroupWatch(PATIENCE), _beat("1", 3)
    left = replace(WORKING, idle_s=100.0, waits=True)
    assert [each[1] for each in _play(lambda second: [lost, _beat("0", second, left)], 60, watch)] == ["1"]
    watch.forget(lost, 60.0)
    assert _play(lambda second: [lost, _beat("0", 60 + second, left)], 600, watch, begin=60) == []


def test_only_the_very_process_is_looked_at(monkeypatch):
    killed = []
    monkeypatch.setattr(group_watch.os, "kill", lambda *call: killed.append(call))
    own = group_watch.os.getpid()
    assert _look_at(own, started(own), kill=False) and not killed
    assert not _look_at(own, "12345", kill=True) and not _look_at(own, "", kill=True) and not killed
    assert _look_at(own, started(own), kill=True) and len(killed) == 1


def test_a_training_tells_its_pulse_of_each_step(digits_dir, tmp_path):
    pulse, uri = Pulse(), str(tmp_path / "run")
    dataset = open_dataset(str(digits_dir / "heldout"))
    config = configure(tiny(dataset.shape), None, ["total_kimg=0.24", "tick_kimg=0.048", "checkpoint_kimg=0.096"])
    claim_run(uri, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=uri), ALONE, pulse=pulse)
    reading = pulse.read()
    assert (reading.steps, reading.images_seen, reading.storing) == (10, 240, True), "the end is storage's"
    assert 0 < reading.usual_s <= reading.slowest_s and pulse.thread == threading.get_ident()


def test_a_pulse_is_read_from_another_thread_and_says_where_the_training_is():
    pulse, go_on = Pulse(), threading.Event()

    def stuck() -> None:
        pulse.begin(0)
        with pulse.waiting_for_storage():
            started(1)
            go_on.wait(20)

    thread = threading.Thread(target=stuck)
    thread.start()
    deadline = time.monotonic() + 10
    while not pulse.read().storing:
        assert time.monotonic() < deadline
    assert "test_group_watch" not in pulse.read().where, "lines of edm_ray only"
    go_on.set()
    thread.join()
    assert not pulse.read().storing and place_of(None) == ("", False)


@pytest.mark.parametrize("seconds", [0.0, 700.0])
def test_collectives_end_after_the_watch_has_acted(seconds):
    patience = Patience(restart_s=Patience().restart_s + seconds)
    assert patience.collective_s > patience.restart_s + patience.silent_s
    assert patience.collective_s > patience.first_s
