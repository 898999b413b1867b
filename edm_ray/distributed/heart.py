"""Signs of life of a training's processes: its ranks and Ray Train's controller, each from a thread of its own.

They travel as keys of Ray's own store (`notices` says why): who it is, a number that grows, and how far its rank is. A
process that was stopped, or holds Python's lock for ever, sends none; one whose training is stuck says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train

from edm_ray.distributed.ray_private import get_value, put_value
from edm_ray.training.pulse import Pulse, Reading

BEAT_S = 2.0
CONTROLLER = "controller"


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The last sign of life of a process."""

    who: str
    """A rank, or "controller"."""
    of: int
    """Ranks of its group."""
    host: str
    pid: int
    started: str
    """When the process was started, by its system's count: another process of the same number has another."""
    node: str
    """Ray's id of its node."""
    number: int
    reading: Reading

    @property
    def process(self) -> tuple[str, int, str]:
        return self.node, self.pid, self.started

    def __str__(self) -> str:
        what = "Ray Train's controller" if self.who == CONTROLLER else f"rank {self.who} of {self.of}"
        return f"{what} on {self.host}, process {self.pid}"


def started(pid: int) -> str:
    """When a process of this machine was started; '' where it is not there, or dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Heart:
    """In the process that lives: tells it every BEAT_S, until the process ends."""

    def __init__(self, key: str, who: str, of: int = 0) -> None:
        self.key, self.who, self.of = key, who, of
        self.now = threading.Event()
        """Set for a sign at once."""
        self.pulse = Pulse(on_begin=lambda images_seen: self.now.set())
        threading.Thread(target=self._beat, daemon=True, name="heart").start()

    def _beat(self) -> None:
        pid, number = os.getpid(), 0
        facts: dict[str, Any] = {"who": self.who, "of": self.of, "host": socket.gethostname(), "pid": pid}
        facts |= {"started": started(pid), "node": ray.get_runtime_context().get_node_id()}
        while True:
            number += 1
            beat = Beat(**facts, number=number, reading=self.pulse.read())
            with contextlib.suppress(Exception):  # a head that does not answer for a moment is told the next time
                put_value(_name(self.key, self.who), json.dumps(asdict(beat)).encode())
            self.now.wait(BEAT_S)
            self.now.clear()


hearts: dict[tuple[str, str], Heart] = {}
"""Of this process."""


def start_heart(key: str, who: str, of: int = 0) -> Heart:
    """That of this process; it may have been started before."""
    if (key, who) not in hearts:
        hearts[key, who] = Heart(key, who, of)
    return hearts[key, who]


def start_in_rank(key: str) -> Heart:
    """In a worker of Ray Train, whose context says which rank it is."""
    context = ray.train.get_context()
    return start_heart(key, str(context.get_world_rank()), context.get_world_size())


def read_beats(key: str, ranks: int) -> list[Beat]:
    """The last signs of those that have given any. Raises where the head does not answer."""
    found = []
    for who in (CONTROLLER, *map(str, range(ranks))):
        if (text := get_value(_name(key, who))) is not None:
            content = json.loads(text)
            found.append(Beat(**{**content, "reading": Reading(**content["reading"])}))
    return found


def names(key: str, ranks: int) -> list[str]:
    return [_name(key, who) for who in (CONTROLLER, *map(str, range(ranks)))]


def _name(key: str, who: str) -> str:
    return f"beat:{key}:{who}"
