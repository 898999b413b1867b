"""Faults of processes, at moments that a test chooses: what the tests of the fault matrix share."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.processes import processes_below

GATES = Path(__file__).with_name("gates")
LIBC = ctypes.CDLL(None, use_errno=True)
PIDFD_OPEN, PIDFD_GETFD = 434, 438
PARTS = {"controller": "TrainController", "raylet": "raylet", "head": "gcs_server"}
"""Victim -> what `ray_parts` finds it by."""
ENDS_S = 240.0
"""A command that was struck has ended by then, or come to its end."""
LEASE_S = 60.0
"""The folder of a command that is stopped is free by then."""


class Gate:
    """A point at which the first process that comes there waits (`gates/sitecustomize.py`)."""

    def __init__(self, folder: Path, point: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "armed").write_text(point)

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment of the processes that are to wait there."""
        return {
            "EDM_RAY_TEST_GATES": str(self.folder),
            "PYTHONPATH": os.pathsep.join([str(GATES), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def reached(self, seconds: float = 200, meanwhile: Callable[[], bool] = lambda: True) -> int:
        """The process that waits there. meanwhile: False where nothing will come any more."""
        end = time.monotonic() + seconds
        while not (pid := self._pid()):
            assert time.monotonic() < end and meanwhile(), "nothing came to the gate"
            time.sleep(0.02)
        return int(pid)

    def _pid(self) -> str:
        try:
            return (self.folder / "reached" / "pid").read_text()
        except FileNotFoundError:
            return ""

    def open(self) -> None:
        (self.folder / "open").touch()

    def remove(self) -> None:
        self.open()
        shutil.rmtree(self.folder)


def cut_connections(pid: int) -> int:
    """Shut down every TCP connection that a process has now, in both directions; how many. Linux 5.6."""
    own, count = LIBC.syscall(PIDFD_OPEN, pid, 0), 0
    assert own >= 0, f"no process {pid}"
    try:
        for fd in list(Path(f"/proc/{pid}/fd").iterdir()):
            with contextlib.suppress(OSError):
                if fd.readlink().name.startswith("socket:"):
                    count += _shut(own, int(fd.name))
    finally:
        os.close(own)
    return count


def _shut(pidfd: int, fd: int) -> bool:
    copy = LIBC.syscall(PIDFD_GETFD, pidfd, fd, 0)
    if copy < 0:
        return False
    with socket.socket(fileno=copy) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        try:
            connection.getpeername()
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
    return True


def strike(kind: str, *pids: int) -> None:
    for pid in pids:
        if kind == "cut connection":
            assert cut_connections(pid), f"process {pid} has no connection"
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.Signals[kind])


def ray_parts(root: int, part: str) -> list[int]:
    """Of the Ray below a process: its raylet, its head ("gcs_server"), or workers with a title ("TrainController")."""
    return [pid for pid, title in processes_below(root) if _is(part, title)]


def _is(part: str, title: str) -> bool:
    first = title.split("\0")[0]
    if part in ("raylet", "gcs_server"):
        return Path(first).name == part
    return title.startswith("ray::") and part in title


class Command:
    """`edm-ray WORDS` on a Ray of its own; what it says is in ``log``."""

    def __init__(self, words: list[str], log: Path, variables: dict[str, str], cpus: int = 2) -> None:
        self.words, self.log = [str(Path(sys.executable).with_name("edm-ray")), *words], log
        self.variables = {**os.environ, "EDM_RAY_LOCAL_CPUS": str(cpus), "OMP_NUM_THREADS": "1", **variables}
        self.processes: list[subprocess.Popen] = []

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as output:
            self.processes.append(
                subprocess.Popen(self.words, env=self.variables, stdout=output, stderr=output, start_new_session=True)
            )
        return self.processes[-1]

    def to_the_end(self, tries: int = 3) -> None:
        """What was started last; where it fails, again."""
        for _ in range(tries):
            try:
                code = self.processes[-1].wait(ENDS_S)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"it hangs:\n{self.log.read_text()[-4000:]}") from None
            if code == 0:
                return
            self.start()
        raise AssertionError(self.log.read_text()[-6000:])

    def taken_over_by_another(self) -> None:
        """The same command is refused as long as the stopped one may be alive."""
        end = time.monotonic() + LEASE_S
        while self.start().wait(ENDS_S) == 2 and time.monotonic() < end:
            time.sleep(2)

    def end(self) -> None:
        for process in self.processes:
            strike("SIGKILL", *[pid for pid, _ in processes_below(process.pid)], process.pid)
            process.wait()
