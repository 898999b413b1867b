"""What a pool's dispatcher knows of an item that is wanted, and of a worker that has some in hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray.exceptions import RayError

from edm_ray.distributed.patience import Patience
from edm_ray.execution.executor import Item, work_of

MOST_BETWEEN_S = 5.0
"""A worker is asked at least so often whether it is there."""


@dataclass(eq=False)
class Job:
    """An item that is wanted, and who waits for it: True when it was made, False when it was there."""

    item: Item
    done: asyncio.Future[bool]
    raised: int = 0
    deaths: int = 0
    late: bool = False
    """Whether it takes longer than it may, and was handed out a second time."""
    given_up: int = 0
    """Workers that were replaced since it took them too long."""

    @property
    def name(self) -> str:
        return str(self.item[0])

    @property
    def alone(self) -> bool:
        """Whether it is to be made by itself: when a worker dies over two items, one of them may be innocent."""
        return self.deaths > 0

    @cached_property
    def work(self) -> float:
        return work_of(self.item)


class Waiting:
    """Jobs that wait for a worker, each once: late ones first, else as they came."""

    def __init__(self) -> None:
        self.jobs: dict[Job, None] = {}
        self.changed = asyncio.Event()

    def put_nowait(self, job: Job) -> None:
        if job.late:
            self.jobs = {job: None, **self.jobs}
        else:
            self.jobs.setdefault(job)
        self.changed.set()

    async def get(self, has: Container[Job] = ()) -> Job:
        """The first, once there is one that the caller does not have already."""
        while True:
            for job in self.jobs:
                if job not in has:
                    del self.jobs[job]
                    return job
            self.changed.clear()
            await self.changed.wait()

    def qsize(self) -> int:
        return len(self.jobs)


class Hired:
    """One worker, and the jobs that it has in hand."""

    def __init__(self, actor: Any, what: str, patience: Patience) -> None:
        self.actor, self.what, self.patience = actor, what, patience
        self.host, self.pid = "", 0
        self.begun: dict[Job, float] = {}
        """Those in hand, and when each was begun."""
        self.ready, self.made = False, 0
        self.wait_alone = 0
        self.lost = False
        """Whether the worker has died."""
        self.changed = asyncio.Condition()

    def __str__(self) -> str:
        return f"{self.what}: the worker on {self.host or '?'}, process {self.pid or '?'}"

    async def watch(self, stuck: Callable[[str, float], None]) -> None:
        """Ask it again and again whether it is there; call ``stuck`` once, with what it has not done for how many
        seconds. The first answer is waited for without end: it comes when there is room for the worker."""
        try:
            self.host, self.pid = await self.actor.hello.remote()
            met = time.monotonic()
            while await self._answers():
                if not self.ready and time.monotonic() - met > self.patience.first_s:
                    return stuck("has not got ready", self.patience.first_s)
                await asyncio.sleep(min(MOST_BETWEEN_S, self.patience.silent_s / 4))
        except RayError:
            return None  # it has died: whoever waits for its work is told too
        return stuck("has not answered", self.patience.silent_s)

    async def _answers(self) -> bool:
        asked = asyncio.ensure_future(self.actor.hello.remote())
        # In two parts: after this process was stopped itself, the answer is there, and is read before the second ends.
        for share in (0.9, 0.1):
            done, _ = await asyncio.wait([asked], timeout=share * self.patience.silent_s)
            if done:
                asked.result()
                return True
        asked.cancel()
        return False

    def took(self, job: Job) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self.begun[job]

    async def take(self, job: Job) -> None:
        """Wait until it may be begun. Those that are to be made alone go before others, or they might never."""
        async with self.changed:
            self.wait_alone += job.alone
            try:
                await self.changed.wait_for(lambda: not self.begun if job.alone else self._open())
            finally:
                self.wait_alone -= job.alone
            self.begun[job] = time.monotonic()

    def _open(self) -> bool:
        return not self.wait_alone and not any(job.alone for job in self.begun)

    async def drop(self, job: Job) -> None:
        async with self.changed:
            del self.begun[job]
            self.changed.notify_all()
