"""Who of a training does nothing: named within a minute, and ended later, so that the group starts again from its
checkpoint.

`GroupWatch` decides, from signs of life (`heart`) and this process's clock; `watched` runs it beside the training,
and tells from which checkpoint a group has really resumed.

- Silent: no sign for ``silent_s``. Named; ended after as long again. Ray Train takes that for any other death.
- Late: signs, and no step for ``factor`` times the slowest of the last 50 (and at least ``silent_s``). Named, with the
  line of code it is at; ended after ``restart_s``, except while a rank waits for storage, which has its own time-outs.
  Before the first step, and where the longest pause so far was longer, all of that comes later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edm_ray.distributed.head import HeadWatch
from edm_ray.distributed.heart import CONTROLLER, Beat, names, read_beats, started
from edm_ray.distributed.patience import Patience, since
from edm_ray.distributed.ray_private import delete_key

logger = logging.getLogger(__name__)
LOOK_S = 2.0
FRESH_S = 5.0
"""Signs come every two seconds."""
NODE_ANSWERS_S = 10.0
"""A look at a process on its node starts a process there."""
Process = tuple[str, int, str]


@dataclass(frozen=True)
class Finding:
    """What is to be said of a process, or done with it."""

    beat: Beat
    line: str
    end: bool = False
    """Whether it is to be killed."""


class GroupWatch:
    """Decides, look by look. ``now`` is this process's monotonic clock."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.heard: dict[Process, tuple[int, float]] = {}
        """The number of the last sign, and when it was new."""
        self.named: set[tuple[Process, int]] = set()
        """Processes that were named at so many steps; -1: as silent."""
        self.ended: set[Process] = set()
        self.excused: dict[Process, float] = {}
        """Ranks whose group was broken up, and until when they are not taken for late."""
        self.last_look: float | None = None

    def look(self, beats: Sequence[Beat], now: float) -> list[Finding]:
        """beats: the last of each. What is new to say of them, and whom to end."""
        self._hear(beats, now)
        there = [beat for beat in beats if beat.process not in self.ended]
        silent = [beat for beat in there if self._silence(beat, now) >= self.patience.silent_s]
        if silent:  # the others wait for them
            found = [finding for beat in silent for finding in self._of_silent(beat, self._silence(beat, now))]
        elif any(self._silence(beat, now) > FRESH_S for beat in there):
            found = []  # it may be silent soon, and then it is the one
        else:
            ranks = [beat for beat in there if beat.who != CONTROLLER]
            found = self._of_late([beat for beat in ranks if self.excused.get(beat.process, now) <= now])
        if any(finding.end for finding in found):
            self._excuse_all(now)
        return found

    def forget(self, beat: Beat, now: float) -> None:
        """It is dead, or its node is: Ray Train knows, or will soon, and starts the group again."""
        self.ended.add(beat.process)
        self._excuse_all(now)

    def _excuse_all(self, now: float) -> None:
        self.excused = dict.fromkeys(self.heard, now + self.patience.restart_s)

    def _hear(self, beats: Sequence[Beat], now: float) -> None:
        # This process was stopped itself, or the head was away: nobody could be heard.
        deaf = self.last_look is not None and now - self.last_look > self.patience.silent_s / 2
        self.last_look = now
        for beat in beats:
            number, _ = self.heard.get(beat.process, (-1, now))
            if beat.number != number or deaf:
                self.heard[beat.process] = (beat.number, now)
                self.named.discard((beat.process, -1))

    def _silence(self, beat: Beat, now: float) -> float:
        return now - self.heard[beat.process][1]

    def _of_silent(self, beat: Beat, seconds: float) -> Iterator[Finding]:
        left, key = 2 * self.patience.silent_s - seconds, (beat.process, -1)
        if left <= 0:
            self.ended.add(beat.process)
            yield Finding(beat, f"{beat}: has not answered {since(seconds)}; it is ended", end=True)
        elif key not in self.named:
            self.named.add(key)
            yield Finding(
                beat, f"{beat}: has not answered {since(seconds)}{_last_step(beat)}; {_in_time(left, 'it is ended')}"
            )

    def _of_late(self, ranks: Sequence[Beat]) -> list[Finding]:
        if not ranks or not (stuck := self._suspects(ranks)):
            return []
        found, patience = [], self.patience
        storing = any(beat.reading.storing for beat in ranks)
        for beat in stuck:
            reading = beat.reading
            least = patience.restart_s if reading.steps else patience.first_s
            left = max(least, patience.factor * reading.slowest_s) - reading.idle_s
            at = f"; it is at {reading.where}" if reading.where else ""
            if left <= 0 and not storing:
                self.ended.add(beat.process)
                found.append(Finding(beat, f"{beat}: no step {since(reading.idle_s)}{at}; it is ended", end=True))
            elif (key := (beat.process, reading.steps)) not in self.named:
                self.named.add(key)
                usual = f", the slowest of the last ones took {reading.usual_s:.1f} s" if reading.usual_s else ""
                then = "a rank waits for storage" if storing else _in_time(left, "it is ended")
                line = f"{beat}: no step {since(reading.idle_s)}{usual}{_last_step(beat)}{at}; {then}"
                found.append(Finding(beat, line))
        return found

    def _suspects(self, ranks: Sequence[Beat]) -> list[Beat]:
        """Those for whom the others wait, once it has been too long: who has made the fewest steps, and of these who
        is not where ranks wait for each other."""
        patience = self.patience
        for beat in ranks:
            reading = beat.reading
            least = patience.silent_s if reading.steps else patience.first_s / 2
            if reading.idle_s < max(least, patience.factor * reading.usual_s):
                return []
        fewest = min(beat.reading.steps for beat in ranks)
        behind = [beat for beat in ranks if beat.reading.steps == fewest]
        return [beat for beat in behind if not beat.reading.waits] or behind


def _last_step(beat: Beat) -> str:
    reading = beat.reading
    if beat.who == CONTROLLER:
        return ""
    if not reading.steps:
        return "; no step yet"
    return f"; last step {reading.steps} of this start ({reading.images_seen:,} images)"


def _in_time(left: float, what: str) -> str:
    return f"{what} in {max(left, 0):.0f} s, and the group starts again from its checkpoint"


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Which processes are watched, and who is told."""

    key: str
    """Their hearts beat for it."""
    ranks: int
    """At most."""
    patience: Patience
    on_resume: Callable[[int], None]
    """Called with the images seen by the checkpoint that a group has resumed from, once for each group."""


@contextlib.contextmanager
def watched(what: Watched) -> Iterator[None]:
    """Meanwhile a thread watches."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(what, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(3 * NODE_ANSWERS_S)  # it must not outlive Ray
        for name in names(what.key, what.ranks):
            delete_key(name)


def new_key() -> str:
    return secrets.token_hex(8)


def _watch(what: Watched, ended: threading.Event) -> None:
    watch, begun, head = GroupWatch(what.patience), set[Process](), HeadWatch()
    while True:
        over = ended.wait(LOOK_S)
        if not over and not head.answers():
            continue
        with contextlib.suppress(Exception):  # the head does not answer after all: the next look says so
            beats = read_beats(what.key, what.ranks)
            for beat in beats:
                if beat.who == "0" and beat.reading.begun_at is not None and beat.process not in begun:
                    begun.add(beat.process)
                    what.on_resume(beat.reading.begun_at)
            for finding in watch.look(beats, time.monotonic()):
                if not over:
                    _act(finding, watch)
            watch.last_look = time.monotonic()  # to act takes a while, and signs came meanwhile
        if over:
            return


def _act(finding: Finding, watch: GroupWatch) -> None:
    beat = finding.beat
    there = _on_its_node(beat, kill=finding.end)
    if there is False:
        watch.forget(beat, time.monotonic())
    else:
        logger.warning("%s%s", finding.line, "" if there else " (its node has not answered either)")


_unanswered: list[Any] = []


def _on_its_node(beat: Beat, kill: bool) -> bool | None:
    """Whether the process is there; killed if so told. None: its node does not answer."""
    node = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    task = ray.remote(_look_at).options(num_cpus=0, scheduling_strategy=node, max_retries=0)
    asked = task.remote(beat.pid, beat.started, kill)
    try:
        return bool(ray.get(asked, timeout=NODE_ANSWERS_S))
    except GetTimeoutError:
        _unanswered.append(asked)  # to be killed when its node answers; Ray reports errors of what nobody holds
        return None
    except RayError:
        return False  # there is no such node any more


def _look_at(pid: int, start: str, kill: bool) -> bool:
    if not start or started(pid) != start:
        return False
    if kill:
        os.kill(pid, signal.SIGKILL)
    return True
