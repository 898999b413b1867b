"""How far a process of a training is: written by the loop, read by another thread or process that watches."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

RECENT = 50
WAITING = ("/torch/autograd/", "/torch/distributed/")
"""Files in which a rank waits for the others, or computes what they wait for."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of a pulse, at one moment. Durations, since clocks of machines differ."""

    steps: int = 0
    """Of this process."""
    images_seen: int = 0
    """By the run, after the last step."""
    begun_at: int | None = None
    """Images seen by the checkpoint that this process resumed from; None as long as it has not."""
    idle_s: float = 0.0
    """Since the last step."""
    usual_s: float = 0.0
    """The slowest of the last 50 steps; 0 where there is none yet."""
    slowest_s: float = 0.0
    """Of all steps."""
    storing: bool = False
    """It waits for storage, which has time-outs of its own."""
    where: str = ""
    """The line of edm_ray that it is at."""
    waits: bool = False
    """Whether it may be waiting for the other ranks there."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Pulse:
    """Of one process. Writing costs nothing that is worth a thought."""

    steps: int = 0
    images_seen: int = 0
    moment: float = field(default_factory=time.monotonic)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    slowest: float = 0.0
    storing: bool = False
    begun_at: int | None = None
    thread: int = 0
    on_begin: Callable[[int], None] = lambda images_seen: None
    """Called where the first step is next, with the images seen by what was resumed."""
    on_step: Callable[[int, int], None] = lambda images_seen, total: None
    """Called there too, and after each step, with the images seen and those of the whole run."""
    total: int = 0

    def start(self) -> None:
        """This thread trains."""
        self.moment, self.thread = time.monotonic(), threading.get_ident()

    def begin(self, images_seen: int) -> None:
        """The next to come is the first step."""
        self.images_seen = self.begun_at = images_seen
        self.moment = time.monotonic()
        self.on_begin(images_seen)
        self.on_step(images_seen, self.total)

    def step(self, images_seen: int) -> None:
        """A step has ended, with all that followed it (ticks, checkpoints, grids)."""
        now = time.monotonic()
        if self.steps:  # the first has compiled and loaded
            self.recent.append(now - self.moment)
            self.slowest = max(self.slowest, now - self.moment)
        self.steps, self.images_seen, self.moment = self.steps + 1, images_seen, now
        self.on_step(images_seen, self.total)

    @contextlib.contextmanager
    def waiting_for_storage(self) -> Iterator[None]:
        self.storing = True
        try:
            yield
        finally:
            self.storing = False

    def read(self) -> Reading:
        where, waits = place_of(sys._current_frames().get(self.thread))
        return Reading(
            steps=self.steps,
            images_seen=self.images_seen,
            begun_at=self.begun_at,
            idle_s=time.monotonic() - self.moment,
            usual_s=max(list(self.recent), default=0.0),
            slowest_s=self.slowest,
            storing=self.storing,
            where=where,
            waits=waits,
        )


def place_of(frame: FrameType | None) -> tuple[str, bool]:
    """(the innermost line of edm_ray, whether ranks wait for each other below it)."""
    waits = frame is not None and any(part in frame.f_code.co_filename for part in WAITING)
    while frame is not None:
        _, found, name = frame.f_code.co_filename.rpartition("/edm_ray/")
        if found:
            return f"edm_ray/{name}:{frame.f_lineno} ({frame.f_code.co_name})", waits
        frame = frame.f_back
    return "", waits
