"""Which Ray a command connects to. `ray.init` is a function that notes what it was given; no Ray runs here."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from edm_ray.distributed import retries, session
from edm_ray.errors import InputError


@pytest.fixture
def connected(monkeypatch):
    """What `ray.init` was given, call by call; and no variable of the user's."""
    calls, ray = [], session.ray
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *address, **options: calls.append((*address, options)))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "set_defaults", lambda local: calls.append({"local": local}))
    monkeypatch.setattr(session, "read_authentication_again", lambda: None)
    monkeypatch.setattr(session, "sends_token", lambda: True)
    for name in ("RAY_ADDRESS", "EDM_RAY_LOCAL_CPUS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_without_an_address_a_ray_of_this_machine_is_started_and_only_it_is_the_command_s_own(connected, monkeypatch):
    freed = []
    monkeypatch.setattr(retries, "remove_placement_groups", lambda: freed.append("all"))
    with session.session():
        assert session.is_own_local_ray()
        retries.free_what_a_dead_controller_held()
    assert connected[0] == {"local": True} and connected[1][0] == "local" and freed == ["all"]
    assert not connected[1][1]["include_dashboard"] and not session.is_own_local_ray()


@pytest.mark.parametrize(("given", "variable"), [("10.0.0.1:6379", ""), (None, "10.0.0.2:6379"), ("a:1", "b:2")])
def test_a_cluster_is_named_by_the_address_or_else_by_ray_address(connected, monkeypatch, given, variable):
    """What others hold on a cluster is never freed."""
    monkeypatch.setattr(retries, "remove_placement_groups", lambda: pytest.fail("others' placement groups"))
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with session.session(given):
        assert not session.is_own_local_ray()
        retries.free_what_a_dead_controller_held()
    assert connected[0] == {"local": False} and connected[1][0] == given  # None: Ray reads RAY_ADDRESS itself


def test_a_session_that_is_open_is_used_and_left_open(connected, monkeypatch):
    monkeypatch.setattr(session.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(session.ray, "shutdown", lambda: pytest.fail("not ours to end"))
    with session.session("10.0.0.1:6379"):
        assert not session.is_own_local_ray()
    assert connected == []


def test_a_cluster_that_cannot_be_reached_is_named_with_the_fix(connected, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("ray client connection timeout. More")

    monkeypatch.setattr(session.ray, "init", fail)
    reached = r"^10\.0\.0\.1:6379: could not connect to Ray: .*timeout; .*RAY_AUTH_TOKEN"
    with pytest.raises(InputError, match=reached), session.session("10.0.0.1:6379"):
        pytest.fail("not reached")
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS=b:2: could not connect"), session.session():
        pytest.fail("not reached")


def test_what_the_command_does_on_sigterm_stays(connected, monkeypatch):
    """`ray.init` sets a handler of its own."""
    monkeypatch.setattr(session.ray, "init", lambda *_, **__: signal.signal(signal.SIGTERM, lambda *_: None))

    def own(*_):
        """The command's."""

    before = signal.signal(signal.SIGTERM, own)
    try:
        with session.session():
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("code", [signal.SIGTERM, 1])
def test_sigterm_that_ray_s_own_handler_hears_while_it_starts_is_the_command_s(connected, monkeypatch, code):
    """Ray's handlers end the process with code 15 or 1, without a word of how to resume."""

    class Asked(Exception):
        """What the command's handler raises."""

    def own(*_):
        raise Asked

    monkeypatch.setattr(session.ray, "init", lambda *_, **__: sys.exit(code))
    monkeypatch.setattr(session, "asked", lambda: signal.SIGTERM if code == 1 else None)
    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(Asked), session.session():
            pytest.fail("not reached")
        assert signal.getsignal(signal.SIGTERM) is own
        monkeypatch.setattr(session, "asked", lambda: None)
        monkeypatch.setattr(session.ray, "init", lambda *_, **__: sys.exit(3))
        with pytest.raises(SystemExit), session.session():
            pytest.fail("not reached")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_local_ray_has_a_random_token_whatever_the_user_has_set_and_the_user_s_is_left(connected, monkeypatch):
    seen = []
    monkeypatch.setattr(session.ray, "init", lambda *_, **__: seen.append(dict(os.environ)))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for own in ("the user's", None):
        if own is None:
            monkeypatch.delenv("RAY_AUTH_TOKEN")
        else:
            monkeypatch.setenv("RAY_AUTH_TOKEN", own)
        with session.session():
            assert os.environ.get("RAY_AUTH_TOKEN") == own and os.environ["RAY_AUTH_MODE"] == "disabled"
    tokens = [each["RAY_AUTH_TOKEN"] for each in seen]
    assert [each["RAY_AUTH_MODE"] for each in seen] == ["token", "token"]
    assert len(set(tokens)) == 2 and {len(token) for token in tokens} == {64}


def test_a_ray_that_came_up_without_a_token_is_ended(connected, monkeypatch):
    ended = []
    monkeypatch.setattr(session, "sends_token", lambda: False)
    monkeypatch.setattr(session.ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(InputError, match="without a token"), session.session():
        pytest.fail("not reached")
    assert ended == [True]


def test_a_cluster_that_is_attached_to_keeps_the_user_s_authentication(connected, monkeypatch):
    monkeypatch.setattr(session, "_token_mode", lambda: pytest.fail("the cluster's token is the user's"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with session.session("10.0.0.1:6379"):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_start_that_timed_out_on_a_busy_machine_is_tried_again_with_more_patience(connected, monkeypatch):
    """ray#65983: "The current node timed out during startup"."""
    monkeypatch.setattr(session, "PAUSE_S", 0.0)
    waits = []
    monkeypatch.setattr(session, "set_start_patience", waits.append)

    def slow(*_, **__):
        if len(waits) < 3:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(session.ray, "init", slow)
    with session.session():
        assert waits == [1, 2, 3]


def test_a_machine_that_stays_too_busy_is_said_in_one_line(connected, monkeypatch):
    monkeypatch.setattr(session, "PAUSE_S", 0.0)

    def slow(*_, **__):
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(session.ray, "init", slow)
    one_line = r"^Ray did not start in \d+ s and 3 tries: .* too busy .*--workers 0$"
    with pytest.raises(InputError, match=one_line), session.session():
        pytest.fail("not reached")


def test_another_error_of_the_start_is_not_tried_again(connected, monkeypatch):
    calls = []

    def broken(*_, **__):
        calls.append(1)
        raise RuntimeError("no such option")

    monkeypatch.setattr(session.ray, "init", broken)
    with pytest.raises(RuntimeError, match="no such option"), session.session():
        pytest.fail("not reached")
    assert len(calls) == 1
