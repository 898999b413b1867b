"""One writer a folder, on local disk and on S3: the second is refused and told who it is, the dead are superseded."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edm_ray.errors import InputError
from edm_ray.storage import lease as leases
from edm_ray.storage import uris
from edm_ray.storage.lease import LeaseLost, hold
from tests.storage.proxies import s3_server

FAST = {"BEAT_S": 0.1, "TTL_S": 1.0, "WATCH_S": 0.5}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path, monkeypatch) -> str:
    if request.param == "disk":
        return str(tmp_path / "out")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("server"))
    return f"s3://bucket/{tmp_path.name}/out"


@pytest.fixture
def fast(monkeypatch) -> None:
    for name, value in FAST.items():
        monkeypatch.setattr(leases, name, value)


HOLDING = """
import sys, time
from edm_ray.storage import lease, uris
for name, value in {fast!r}.items():
    setattr(lease, name, value)
with lease.hold({folder!r}, "train"):
    print("held", flush=True)
    for line in sys.stdin:
        uris.write_bytes({folder!r} + "/row", line.encode())
        print("written", flush=True)
"""


@contextmanager
def another_writer(folder: str) -> Iterator[subprocess.Popen]:
    code = HOLDING.format(folder=folder, fast=FAST)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "held\n", process.stderr.read()
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()


def _foreign(folder: str, **changes) -> str:
    """The lease of a writer on another machine; returns its file."""
    holder = dataclasses.replace(leases.Holder.this("sweep"), host="node-7", place="elsewhere", pid=4711, **changes)
    path = f"{folder}/.lease/000001.json"
    uris.write_bytes(path, json.dumps({"format": leases.FORMAT, **dataclasses.asdict(holder)}).encode())
    return path


def test_a_folder_is_held_and_given_back_without_a_trace(folder):
    with hold(folder, "train") as lease:
        assert uris.list_names(f"{folder}/.lease") == ["000001.json"]
        uris.write_bytes(f"{folder}/row", b"x")
        lease.check()
        assert leases.held() == (lease,)
    assert uris.list_names(f"{folder}/.lease") == [] and leases.held() == () and uris.guards == {}
    assert uris.read_bytes(f"{folder}/row") == b"x"


def test_a_second_writer_is_refused_within_ten_seconds_and_told_who_holds_it(folder):
    path, began = _foreign(folder), time.monotonic()
    refused = pytest.raises(
        InputError, match=r"out: `edm-ray sweep` on node-7, pid 4711, since 2.*is writing here; wait"
    )
    with refused, hold(folder, "train"):
        pytest.fail("not reached")
    assert time.monotonic() - began < 10 and uris.exists(path)


def test_a_writer_on_another_machine_that_gives_no_sign_is_superseded(folder, fast, monkeypatch):
    path = _foreign(folder)
    really = uris.modified
    monkeypatch.setattr(uris, "modified", lambda uri: (really(uri)[0], really(uri)[1] + 60))
    with hold(folder, "train") as lease:
        assert lease.number == 2 and not uris.exists(path)


def test_a_writer_with_a_wrong_clock_that_gives_signs_is_not_superseded(tmp_path, fast):
    """Its store's clock is an hour behind: every sign of life looks old."""
    path, ended = Path(_foreign(str(tmp_path))), threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(path, (time.time() - 3600,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        time.sleep(0.3)
        with pytest.raises(InputError, match="node-7"), hold(str(tmp_path), "train"):
            pytest.fail("not reached")
    finally:
        ended.set()
        thread.join()


def test_of_many_at_one_moment_one_gets_it(folder, fast):
    _foreign(folder, started="1")
    dead = dataclasses.replace(leases.Holder.this("train"), started="1")
    uris.write_bytes(
        f"{folder}/.lease/000001.json", json.dumps({"format": leases.FORMAT, **dataclasses.asdict(dead)}).encode()
    )
    got, refused, start, end = [], [], threading.Barrier(6), threading.Barrier(6)

    def writer() -> None:
        start.wait()
        try:
            with hold(folder, "train") as lease:
                got.append(lease)
                end.wait(60)
        except InputError as error:
            refused.append(error)
            end.wait(60)

    threads = [threading.Thread(target=writer) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 5


def test_a_killed_writer_of_this_machine_is_superseded_at_once(tmp_path):
    with another_writer(str(tmp_path)) as process:
        with pytest.raises(InputError, match=rf"pid {process.pid}, since"), hold(str(tmp_path), "train"):
            pytest.fail("not reached")
        process.kill()
        process.wait(30)
        began = time.monotonic()
        with hold(str(tmp_path), "train"):
            assert time.monotonic() - began < 1


def test_a_killed_writer_that_nobody_has_buried_is_dead_too(tmp_path):
    with another_writer(str(tmp_path)) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with hold(str(tmp_path), "train"):
            """It is a zombie now."""


def test_a_writer_that_slept_finds_its_lease_gone_before_its_next_write(tmp_path, fast):
    with another_writer(str(tmp_path)) as process:
        process.stdin.write("first\n")
        process.stdin.flush()
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(FAST["TTL_S"] + 0.5)
        with hold(str(tmp_path), "sweep"):
            process.stdin.write("second\n")
            process.stdin.flush()
            process.send_signal(signal.SIGCONT)
            assert process.wait(30) != 0
            said = process.stderr.read()
            assert "`edm-ray sweep`" in said and "has taken it over" in said and str(os.getpid()) in said
            assert (tmp_path / "row").read_text() == "first\n"


def test_a_process_that_writes_for_the_holder_stops_too(tmp_path):
    with hold(str(tmp_path), "train") as lease, lease.guard():
        uris.write_bytes(f"{tmp_path}/row", b"first")
    with hold(str(tmp_path), "sweep"), lease.guard():
        with pytest.raises(LeaseLost, match="edm-ray sweep"):
            uris.write_bytes(f"{tmp_path}/row", b"second")
        for write in (uris.delete_directory, uris.delete, lambda uri: uris.create_bytes(uri, b"")):
            with pytest.raises(LeaseLost):
                write(f"{tmp_path}/row")
    assert (tmp_path / "row").read_bytes() == b"first"


def test_a_folder_that_was_deleted_meanwhile_is_written_no_more(tmp_path, fast):
    with hold(str(tmp_path / "out"), "train"):
        uris.write_bytes(f"{tmp_path}/out/row", b"x")
        for path in (tmp_path / "out" / ".lease").iterdir():
            path.unlink()
        time.sleep(1)
        with pytest.raises(LeaseLost, match="was deleted"):
            uris.write_bytes(f"{tmp_path}/out/row", b"x")


def test_a_lease_is_renewed_while_its_holder_works(tmp_path, fast):
    with hold(str(tmp_path), "train") as lease:
        before = uris.modified(lease.path)[0]
        time.sleep(2 * FAST["TTL_S"])
        assert uris.modified(lease.path)[0] > before
        uris.write_bytes(f"{tmp_path}/row", b"x")


def test_the_same_thread_may_hold_it_again_another_may_not(tmp_path):
    said = []

    def other() -> None:
        try:
            with hold(str(tmp_path), "evaluate"):
                said.append("held")
        except InputError as error:
            said.append(str(error))

    with hold(str(tmp_path), "train") as outer:
        with hold(str(tmp_path), "reference") as inner:
            assert inner == outer
        outer.check()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1 and "edm-ray train" in said[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"\x80\x04N."])
def test_a_damaged_lease_counts_by_its_age(tmp_path, fast, content):
    path = tmp_path / ".lease" / "000007.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match="is writing here"), hold(str(tmp_path), "train"):
        pytest.fail("not reached")
    os.utime(path, (0, time.time() - 60))
    with hold(str(tmp_path), "train") as lease:
        assert lease.number == 8


def test_names_that_are_no_lease_are_left_out(tmp_path):
    (tmp_path / ".lease").mkdir()
    (tmp_path / ".lease" / "notes.json").write_text("x")
    with hold(str(tmp_path), "train") as lease:
        assert lease.number == 1


def test_without_a_folder_nothing_is_held():
    with hold(None, "evaluate") as lease:
        assert lease is None and leases.held() == ()
