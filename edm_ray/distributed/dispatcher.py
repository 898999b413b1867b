"""The dispatcher of a pool: hands items to workers, and starts workers. It runs in an asyncio actor (`dispatchers.py`).

An item that raises is tried MAX_RAISES times, then it alone is refused; one whose worker dies is handed out again.
A worker that does not answer, or that another has outrun, is killed: what it had in hand is handed out again as after
any death (`patience`, `watched`).
"""

from __future__ import annotations

import asyncio
import collections
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import ray
from ray.exceptions import RayError, RaySystemError, RayTaskError

from edm_ray.distributed.cluster.preflight import WorkerRequest, in_use, nodes_free, nodes_there, refusal
from edm_ray.distributed.metrics import QUEUE, WORKERS, tell
from edm_ray.distributed.patience import Patience, TimeBound, since
from edm_ray.distributed.watched import Hired, Job, Waiting
from edm_ray.distributed.worker import Worker
from edm_ray.errors import InputError
from edm_ray.execution.executor import Recipe, is_made
from edm_ray.storage.artifacts import key_of
from edm_ray.storage.lease import Lease

logger = logging.getLogger(__name__)
MAX_RAISES = 3
"""An item that raises so often (each time in a new process) is refused; wrong input is refused at once."""
MAX_DEATHS = 12
"""An item whose worker dies so often is taken for the cause."""
MAX_BAD_STARTS = 10
"""So many workers in a row that end before they are ready, with none at work, are taken for a fault of the pool."""
PATIENCE_S = 300.0
"""How long items wait while not one worker is at work (a start takes a minute at most, an autoscaler more)."""
_CHECKS_AT_ONCE = 16
MISSING = re.compile(r"No module named '([\w.]+)'|Can't get attribute '\w+' on <module '([\w.]+)'")
"""What Python says when it unpickles something of a module that is not there, or is another version."""


class ItemFailed(InputError):
    """One item could not be made, however often it was tried; others can."""


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """How many workers, and what each takes."""

    ask: WorkerRequest
    device: str
    slots: int
    """Workers, at most."""
    patience: float = PATIENCE_S
    environment: dict[str, Any] = field(default_factory=dict)
    in_hand: int = 1
    """Items that one worker has at once."""
    light: bool = False
    """They work now and then: spread over the nodes, and more than one where items wait."""
    leases: tuple[Lease, ...] = ()
    """Of the folders that the pool's owner writes to; workers look at them before they write."""
    stuck: Patience = Patience()  # noqa: RUF009 (frozen)
    """With workers that do not answer, and items that take long."""


class Dispatcher:
    """Hands items to idle workers, and those whose worker died to others."""

    def __init__(self, recipe: bytes, spec: PoolSpec) -> None:
        """recipe: the pickled reference to it that the pool's owner holds."""
        self.reference, self.spec = recipe, spec
        self.wake = self.begin
        """Called before the first item that is missing is handed out, and then again."""
        self.jobs = Waiting()
        self.under_way: dict[tuple[str, ...], Job] = {}
        self.refused: dict[tuple[str, ...], InputError] = {}
        self.broken: InputError | None = None
        self.counts: collections.Counter[str] = collections.Counter()
        self.alive: list[Hired] = []
        self.bound = TimeBound(spec.stuck)
        self.tell: Callable[[str], None] = logger.warning
        """Called with a line for people."""
        self.bad_starts = 0
        self.last_alive = time.monotonic()
        self.checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self.running: list[asyncio.Task[None]] = []
        self.num_slots = 0
        self.behind = False
        """Whether items waited at the last look."""

    @cached_property
    def recipe(self) -> Recipe:
        found: Recipe = ray.get(ray.cloudpickle.loads(self.reference))
        return found

    async def begin(self) -> None:
        """Ask for the workers; nothing when that was done."""
        if not self.running:
            self.last_alive = time.monotonic()
            self.running = [asyncio.create_task(self._watch())]
            for _ in range(1 if self.spec.light else self.spec.slots):
                self._open_slot()

    def _open_slot(self) -> None:
        self.num_slots += 1
        self.running.append(asyncio.create_task(self._slot()))

    async def ensure(self, *item: Any) -> bool:
        """Return when the item is in the store: True if it was made for this call, False if not.

        Raises InputError for an item or a pool that cannot work, ItemFailed for an item that failed too often.
        """
        key = tuple(key_of(artifact) for artifact in item)
        if (known := self.broken or self.refused.get(key)) is not None:
            raise known
        if (job := self.under_way.get(key)) is not None:
            await asyncio.shield(job.done)
            return False
        job = self.under_way[key] = Job(item, asyncio.get_running_loop().create_future())
        job.done.add_done_callback(lambda done: self._ended(key, done))
        try:
            async with self.checks:
                there = await asyncio.to_thread(lambda: is_made(self.recipe, item))
        except BaseException as error:
            _fail(job, error if isinstance(error, Exception) else ItemFailed(f"{job.name}: given up"))
            raise
        if there:
            job.done.set_result(False)
        else:
            await self.wake()
            self.jobs.put_nowait(job)
        return await asyncio.shield(job.done)

    def _ended(self, key: tuple[str, ...], done: asyncio.Future[bool]) -> None:
        del self.under_way[key]
        # Read, so that asyncio does not report it as lost when nobody waits any more.
        if not done.cancelled() and isinstance(error := done.exception(), InputError) and self.broken is None:
            self.refused[key] = error

    async def _slot(self) -> None:
        """One place in the pool: a worker, and after it another, for ever."""
        while self.broken is None:
            worker = Hired(self._start(), self.spec.ask.what, self.spec.stuck)
            watching = asyncio.create_task(worker.watch(partial(self._stuck, worker)))
            try:
                await worker.actor.load.remote()
            except RayError as error:
                self._bad_start(error)
                watching.cancel()
                _end(worker.actor)
                await asyncio.sleep(min(5.0, 0.1 * 2**self.bad_starts))
                continue
            self.bad_starts, worker.ready = 0, True
            self.alive.append(worker)
            try:
                await self._serve(worker)
            finally:
                watching.cancel()
                self.alive.remove(worker)
                self.last_alive = time.monotonic()
                _end(worker.actor)

    def _stuck(self, worker: Hired, what: str, seconds: float) -> None:
        """It is there and does not answer: stopped, or its node hangs. Killed, all calls to it end."""
        self.counts["stuck"] += 1
        had = " and ".join(job.name for job in worker.begun)
        handed = f", and {had} handed to another" if had else ""
        self.tell(f"{worker}: {what} {since(seconds)}; it is replaced{handed}")
        _end(worker.actor)

    def _start(self) -> Any:
        ask, spec = self.spec.ask, self.spec
        actor = ray.remote(Worker).options(
            num_cpus=ask.cpus,
            num_gpus=ask.gpus,
            max_concurrency=spec.in_hand + 1,  # one more: it answers also while it works
            runtime_env=spec.environment or None,
            scheduling_strategy="SPREAD" if spec.light else "DEFAULT",
        )
        return actor.remote([ray.cloudpickle.loads(self.reference)], spec.device, spec.leases)

    def _bad_start(self, error: RayError) -> None:
        """A worker ended before it was ready. Wrong input, or failing for ever, ends the pool."""
        self.counts["starts failed"] += 1
        self.bad_starts += 1
        cause = cause_of(error)
        if not isinstance(cause, InputError):
            if self.bad_starts < MAX_BAD_STARTS or self.alive:
                return
            what = self.spec.ask.what
            cause = InputError(
                f"workers of {what} end before they are ready ({self.bad_starts} in a row); the last: {cause}"
            )
        self.broken = cause
        for job in list(self.under_way.values()):
            _fail(job, cause)

    async def _serve(self, worker: Hired) -> None:
        """Hand items to this worker until it must be replaced; what it has in hand then goes back."""
        hands = [asyncio.create_task(self._hand(worker)) for _ in range(self.spec.in_hand)]
        try:
            await asyncio.wait(hands, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for hand in hands:
                hand.cancel()
        for end in await asyncio.gather(*hands, return_exceptions=True):
            if isinstance(end, Exception):
                raise end

    async def _hand(self, worker: Hired) -> None:
        """One item after another, until the worker must be replaced."""
        while True:
            job = await self.jobs.get(worker.begun)
            if job.done.done():
                continue
            try:
                await worker.take(job)
            except BaseException:
                self.jobs.put_nowait(job)
                raise
            try:
                await worker.actor.make.remote(job.item)
            except RayTaskError as error:
                cause = cause_of(error)
                if not isinstance(cause, InputError):
                    self._raised(job, cause)
                    return  # after an error nobody expected its process is not to be trusted (CUDA errors stay)
                _fail(job, cause)
            except RayError as error:
                if isinstance(cause := cause_of(error), InputError):  # it never reached the worker's code
                    _fail(job, cause)
                    await worker.drop(job)
                    continue
                worker.lost = True
                self._lost(job, error)
                return
            except BaseException:
                job.deaths += worker.lost  # it may have been the cause
                self.jobs.put_nowait(job)
                raise
            else:
                self._made(job, worker)
            await worker.drop(job)

    def _made(self, job: Job, worker: Hired) -> None:
        """Also by one that was late: what it took is learnt, and an item counts once. Who began it before is outrun."""
        self.bound.learn(worker.took(job), job.work)
        worker.made += 1
        if job.done.done():
            return
        self.counts["made"] += 1
        job.done.set_result(True)
        for other in self.alive:
            if job in other.begun and other.begun[job] < worker.begun[job]:
                self.tell(f"{other}: {job.name} was made by another meanwhile; this one is replaced")
                _end(other.actor)

    def _raised(self, job: Job, error: Exception) -> None:
        self.counts["raised"] += 1
        job.raised += 1
        logger.warning("%s raised %s: %s", job.name, type(error).__name__, error)
        if job.raised < MAX_RAISES:
            self.jobs.put_nowait(job)
        else:
            text = f"{type(error).__name__}: {error}".strip().splitlines()
            _fail(job, ItemFailed(f"{job.name}: failed {job.raised} times, each in a new process; last: {text[0]}"))

    def _lost(self, job: Job, error: RayError) -> None:
        self.counts["actors lost"] += 1
        job.deaths += 1
        if job.deaths < MAX_DEATHS:
            self.jobs.put_nowait(job)
        else:
            text = str(error).strip().splitlines()[0]
            _fail(job, ItemFailed(f"{job.name}: {job.deaths} workers died over it; last: {text}"))

    async def _watch(self) -> None:
        """Items do not wait for ever when there is nobody to make them."""
        while self.broken is None:
            await asyncio.sleep(min(1.0, self.spec.patience / 4))
            self._grow_where_behind()
            self._look_for_late()
            tell(QUEUE, self.jobs.qsize(), self.spec.ask.what)
            tell(WORKERS, len(self.alive), self.spec.ask.what)
            if self.alive or not self.under_way:
                self.last_alive = time.monotonic()
            elif time.monotonic() - self.last_alive > self.spec.patience:
                ask = self.spec.ask
                there, free = await asyncio.to_thread(lambda: (nodes_there(), nodes_free()))
                why = refusal(ask, there) or in_use(ask, there, free)
                error = InputError(f"not one worker of {ask.what} could start in {self.spec.patience:g} s: {why}")
                for job in list(self.under_way.values()):
                    _fail(job, error)
                self.refused.clear()
                self.last_alive = time.monotonic()

    def _look_for_late(self) -> None:
        """An item that takes long is handed to another worker too; where none has made it after as long again, its
        worker is replaced, and next time it is waited for longer."""
        for worker in list(self.alive):
            for job in list(worker.begun):
                bound, took = self.bound.of(job.work, first=worker.made == 0) * 2**job.given_up, worker.took(job)
                if took > bound and not job.late:
                    self.counts["late"] += 1
                    job.late = True
                    usual = self.bound.usual(job.work) or "none was made before"
                    self.tell(f"{worker}: {job.name} under way {since(took)}, {usual}; it is handed to another too")
                    self.jobs.put_nowait(job)
                elif took > 2 * bound:
                    job.given_up += 1
                    job.late = False
                    self.tell(f"{worker}: {job.name} under way {since(took)}, nobody made it; it is replaced")
                    _end(worker.actor)

    def _grow_where_behind(self) -> None:
        """Another worker where there is room for it and items have waited since the last look."""
        behind = self.jobs.qsize() > 0 and bool(self.alive)
        if behind and self.behind and self.num_slots < self.spec.slots:
            self._open_slot()
        self.behind = behind

    async def status(self) -> dict[str, int]:
        """What was counted since this dispatcher began."""
        return {**self.counts, "alive": len(self.alive)}

    async def worker_pids(self) -> list[int]:
        """Process ids of the workers that are ready (for fault tests); waits for the first."""
        await self.begin()
        while not self.alive:
            await asyncio.sleep(0.05)
        return [worker.pid for worker in self.alive if worker.pid]


def _fail(job: Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)


def _end(worker: Any) -> None:
    """Whatever is left of it: one that was only out of reach would hold its resources."""
    ray.kill(worker)


def cause_of(error: RayError) -> Exception:
    """What was raised in the other process, without Ray's wrapping; a class that it cannot import as InputError."""
    cause = getattr(error, "cause", None)
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    for each in (error, cause):
        if isinstance(each, RaySystemError) and (missing := MISSING.search(str(each))):
            name = next(group for group in missing.groups() if group)
            return InputError(
                f"the workers cannot import {name}, where a class of yours is: install it there, send it along with "
                "`ray job submit --working-dir`, or define the class in the script that is started"
            )
    return cause if isinstance(error, RayTaskError) and isinstance(cause, Exception) else error
