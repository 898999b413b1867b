"""Whether the processes of a Ray that this command has started are there: its raylet (the node) and its head.

Nothing works without them, and Ray itself is slow to say so: of a raylet that was killed a command hears after six
minutes (`ray_private.LOCAL`), of one that was stopped never. So this process ends when one of them does, with a line
and code 1, as Ray ends it where the head of a cluster is gone; the same command resumes. A program of one's own (a
notebook) is only told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from edm_ray.distributed.patience import since
from edm_ray.distributed.ray_private import own_daemons
from edm_ray.execution.stopping import is_command

logger = logging.getLogger(__name__)
LOOK_S, ENDS_S = 0.25, 60.0
"""Between two looks; and Ray has ended so long after it was told to."""
SHOW_CURSOR = "\x1b[?25h"
GONE, STOPPED, THERE = "gone", "stopped", "there"


def state_of(pid: int) -> str:
    """Of a process of this machine (Linux; elsewhere it is there)."""
    if not Path("/proc/self/stat").exists():
        return THERE
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return GONE
    return GONE if state in "ZX" else STOPPED if state == "T" else THERE


class Daemons:
    """Decides, look by look, which of them is lost."""

    def __init__(self, pids: Mapping[str, int], silent_s: float) -> None:
        self.pids, self.silent_s = pids, silent_s
        self.stopped_at: dict[str, float] = {}
        self.named: set[str] = set()

    def look(self, now: float, state: Callable[[int], str] = state_of) -> str:
        """What is to be said when this process ends, for the want of one; '' as long as none is lost. One that is
        stopped is named after ``silent_s``, and lost, and killed, after as long again."""
        for name, pid in self.pids.items():
            found = state(pid)
            who = f"Ray's {name} on this machine, process {pid},"
            if found == GONE:
                return f"{who} was ended from outside: this command ends, and the same command resumes"
            if found == THERE:
                self.stopped_at.pop(name, None)
                self.named.discard(name)
                continue
            seconds = now - self.stopped_at.setdefault(name, now)
            if seconds >= 2 * self.silent_s:
                return f"{who} is stopped {since(seconds)}: this command ends, and the same command resumes"
            if seconds >= self.silent_s and name not in self.named:
                self.named.add(name)
                left = 2 * self.silent_s - seconds
                logger.warning("%s is stopped %s; this command ends in %.0f s, and resumes", who, since(seconds), left)
        return ""


@contextlib.contextmanager
def own_ray_watched(silent_s: float) -> Iterator[None]:
    """Meanwhile a thread looks, where this process has started Ray; afterwards it sees to it that Ray can be ended."""
    ended, daemons = threading.Event(), Daemons(own_daemons(), silent_s)

    def watch() -> None:
        while not ended.wait(LOOK_S):
            if (line := daemons.look(time.monotonic())) and not ended.is_set():
                if is_command():
                    _end(line, daemons.pids.values())
                logger.error("%s (in a program of your own: its calls may wait for minutes; end them)", line)
                ended.wait()
        _continue_until_gone(daemons.pids.values())

    threading.Thread(target=watch, daemon=True, name="own-ray").start()
    try:
        yield
    finally:
        ended.set()


def _continue_until_gone(pids: Iterable[int]) -> None:
    """`ray.shutdown` would wait for ever for one that is stopped."""
    left, end = list(pids), time.monotonic() + ENDS_S
    while (left := [pid for pid in left if state_of(pid) != GONE]) and time.monotonic() < end:
        for pid in left:
            if state_of(pid) == STOPPED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        time.sleep(LOOK_S)


def _end(line: str, pids: Iterable[int]) -> None:
    """At once: whatever else this process does waits for Ray."""
    logger.error(line)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.write(SHOW_CURSOR if stream.isatty() else "")  # a live line hides it
            stream.flush()
    os._exit(1)
