"""A command ends soon after the raylet or the head of its own Ray has: with processes that are made up."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time

import pytest

from edm_ray.distributed import own_ray
from edm_ray.distributed.own_ray import GONE, STOPPED, THERE, Daemons, own_ray_watched, state_of

PIDS = {"raylet": 1, "gcs_server": 2}


def test_one_that_is_gone_ends_the_command_at_once_and_is_named() -> None:
    daemons = Daemons(PIDS, 45.0)
    assert daemons.look(0.0, lambda pid: THERE) == ""
    line = daemons.look(1.0, lambda pid: GONE if pid == 2 else THERE)
    assert line.startswith("Ray's gcs_server on this machine, process 2, was ended") and "resumes" in line


def test_one_that_is_stopped_is_named_first_and_lost_later(caplog) -> None:
    daemons, state = Daemons(PIDS, 45.0), {1: STOPPED, 2: THERE}
    with caplog.at_level(logging.WARNING):
        said = {second: daemons.look(float(second), state.get) for second in range(90)}
    assert set(said.values()) == {""} and caplog.text.count("Ray's raylet on this machine, process 1, is stopped") == 1
    assert "(90 s): this command ends" in daemons.look(90.0, state.get)


def test_one_that_continues_in_time_is_not_lost() -> None:
    daemons, state = Daemons(PIDS, 45.0), {1: STOPPED, 2: THERE}
    assert daemons.look(0.0, state.get) == daemons.look(80.0, state.get) == ""
    state[1] = THERE
    assert daemons.look(85.0, state.get) == ""
    state[1] = STOPPED
    assert daemons.look(86.0, state.get) == daemons.look(160.0, state.get) == ""


def test_the_state_of_a_process_is_seen() -> None:
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        assert state_of(sleeping.pid) == THERE
        os.kill(sleeping.pid, signal.SIGSTOP)
        end = time.monotonic() + 5
        while state_of(sleeping.pid) != STOPPED and time.monotonic() < end:
            time.sleep(0.01)
        assert state_of(sleeping.pid) == STOPPED
    finally:
        sleeping.kill()
    while state_of(sleeping.pid) != GONE:  # not waited for yet: a zombie
        assert time.monotonic() < end + 5
    sleeping.wait()
    assert state_of(sleeping.pid) == GONE


@pytest.mark.parametrize("command", [True, False])
def test_a_command_is_ended_and_a_program_of_one_s_own_is_told(command, monkeypatch, caplog) -> None:
    ended = []
    monkeypatch.setattr(own_ray, "own_daemons", lambda: {"raylet": 0})
    monkeypatch.setattr(Daemons.look, "__defaults__", (lambda pid: GONE,))
    monkeypatch.setattr(own_ray, "is_command", lambda: command)
    monkeypatch.setattr(own_ray, "_end", lambda line, pids: ended.append(line))
    with own_ray_watched(45.0):
        end = time.monotonic() + 20
        while not caplog.text and time.monotonic() < end:
            time.sleep(0.05)
    assert bool(ended) == command and "a program of your own" in caplog.text


def test_one_that_is_stopped_while_ray_is_ended_is_continued(monkeypatch) -> None:
    """Or the end would wait for it: here for one that ends when it is told to, like the raylet."""
    raylet = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(own_ray, "own_daemons", lambda: {"raylet": raylet.pid})
    try:
        with own_ray_watched(45.0):
            os.kill(raylet.pid, signal.SIGSTOP)
            while state_of(raylet.pid) != STOPPED:
                time.sleep(0.01)
        raylet.terminate()  # held back as long as it is stopped
        assert raylet.wait(10) == -signal.SIGTERM
    finally:
        raylet.kill()
