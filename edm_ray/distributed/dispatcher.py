"""The queue of a pool: one asyncio actor that hands chunks to samplers, and starts samplers.

A chunk that raises is tried MAX_RAISES times, then it alone is refused; one whose sampler dies goes back to the queue.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from edm_ray.distributed.chunks import Chunk, Generator, first_chunks, is_stored
from edm_ray.distributed.cluster.preflight import Ask, in_use, nodes_free, nodes_there, refusal
from edm_ray.distributed.ray_private import run_in_actor
from edm_ray.distributed.sampler import Sampler
from edm_ray.errors import InputError

logger = logging.getLogger(__name__)
MAX_RAISES = 3
"""A chunk that raises so often (each time in a new process) is refused; wrong input is refused at once."""
MAX_DEATHS = 12
"""A chunk whose sampler dies so often is taken for the cause."""
MAX_BAD_STARTS = 10
"""So many samplers in a row that end before they are ready, with none at work, are taken for a fault of the pool."""
PATIENCE_S = 300.0
"""How long chunks wait while not one sampler is at work (a start takes a minute at most, an autoscaler more)."""
_CHECKS_AT_ONCE = 16


class ChunkFailed(InputError):
    """One chunk could not be made, however often it was tried; others can."""


@dataclass(eq=False)
class Job:
    """A chunk that is wanted, and who waits for it: True when it was generated, False when it was there."""

    chunk: Chunk
    done: asyncio.Future[bool]
    raised: int = 0
    deaths: int = 0

    @property
    def alone(self) -> bool:
        """Whether it is to be made by itself: when a sampler dies over two chunks, one of them may be innocent."""
        return self.deaths > 0


class InHand:
    """The jobs that one sampler has in hand."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.wait_alone = 0
        self.lost = False
        """Whether the sampler has died."""
        self.changed = asyncio.Condition()

    async def take(self, job: Job) -> None:
        """Wait until it may be begun. Those that are to be made alone go before others, or they might never."""
        async with self.changed:
            self.wait_alone += job.alone
            try:
                await self.changed.wait_for(lambda: not self.jobs if job.alone else self._open())
            finally:
                self.wait_alone -= job.alone
            self.jobs.append(job)

    def _open(self) -> bool:
        return not self.wait_alone and not any(job.alone for job in self.jobs)

    async def drop(self, job: Job) -> None:
        async with self.changed:
            self.jobs.remove(job)
            self.changed.notify_all()


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many samplers, and what each takes."""

    ask: Ask
    device: str
    patience: float = PATIENCE_S
    environment: dict[str, Any] = field(default_factory=dict)
    in_hand: int = 1
    """Chunks that one sampler has at once."""


class Queue:
    """One asyncio actor: hands chunks to idle samplers, resubmits those whose sampler died."""

    def __init__(self, parts: bytes, store: str, crew: Crew) -> None:
        """parts: the pickled references to model and extractors that the pool's owner holds."""
        self.parts, self.store, self.crew = parts, store, crew
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.under_way: dict[str, Job] = {}
        self.refused: dict[str, InputError] = {}
        self.broken: InputError | None = None
        self.counts: collections.Counter[str] = collections.Counter()
        self.alive: list[Any] = []
        self.bad_starts = 0
        self.last_alive = time.monotonic()
        self.checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self.running: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Ask for the samplers; nothing when that was done."""
        if not self.running:
            self.last_alive = time.monotonic()
            slots = [asyncio.create_task(self._slot()) for _ in range(self.crew.ask.count)]
            self.running = [*slots, asyncio.create_task(self._watch())]

    async def ensure(self, chunk: Chunk) -> bool:
        """Return when the chunk is in the store: True if it was generated for this call, False if not.

        Raises InputError for a chunk or a pool that cannot work, ChunkFailed for a chunk that failed too often.
        """
        await self.begin()
        if (known := self.broken or self.refused.get(chunk.key)) is not None:
            raise known
        if (job := self.under_way.get(chunk.key)) is not None:
            await asyncio.shield(job.done)
            return False
        job = self.under_way[chunk.key] = Job(chunk, asyncio.get_running_loop().create_future())
        job.done.add_done_callback(lambda done: self._ended(chunk.key, done))
        try:
            async with self.checks:
                there = await asyncio.to_thread(is_stored, self.store, chunk)
        except BaseException as error:
            _fail(job, error if isinstance(error, Exception) else ChunkFailed(f"{chunk}: given up"))
            raise
        if there:
            job.done.set_result(False)
        else:
            self.jobs.put_nowait(job)
        return await asyncio.shield(job.done)

    async def ensure_first(
        self, generator: Generator, settings: Mapping[str, Any], pool: str, count: int, size: int
    ) -> int:
        """Return when the first ``count`` chunks of a pool of seeds are in the store: images made for this call."""
        chunks = first_chunks(generator, settings, pool, count, size)
        made = await asyncio.gather(*[self.ensure(chunk) for chunk in chunks])
        return sum(chunk.size for chunk, new in zip(chunks, made, strict=True) if new)

    def _ended(self, key: str, done: asyncio.Future[bool]) -> None:
        del self.under_way[key]
        # Read, so that asyncio does not report it as lost when nobody waits any more.
        if not done.cancelled() and isinstance(error := done.exception(), InputError) and self.broken is None:
            self.refused[key] = error

    async def _slot(self) -> None:
        """One place in the pool: a sampler, and after it another, for ever."""
        while self.broken is None:
            sampler = self._start()
            try:
                await sampler.load.remote()
            except RayError as error:
                self._bad_start(error)
                _end(sampler)
                await asyncio.sleep(min(5.0, 0.1 * 2**self.bad_starts))
                continue
            self.bad_starts = 0
            self.alive.append(sampler)
            try:
                await self._serve(sampler)
            finally:
                self.alive.remove(sampler)
                self.last_alive = time.monotonic()
                _end(sampler)

    def _start(self) -> Any:
        ask = self.crew.ask
        actor = ray.remote(Sampler).options(
            num_cpus=ask.cpus,
            num_gpus=ask.gpus,
            max_concurrency=self.crew.in_hand,
            runtime_env=self.crew.environment or None,
        )
        return actor.remote(*ray.cloudpickle.loads(self.parts), self.store, self.crew.device)

    def _bad_start(self, error: RayError) -> None:
        """A sampler ended before it was ready. Wrong input, or failing for ever, ends the pool."""
        self.counts["starts failed"] += 1
        self.bad_starts += 1
        cause = cause_of(error)
        if not isinstance(cause, InputError):
            if self.bad_starts < MAX_BAD_STARTS or self.alive:
                return
            cause = InputError(f"samplers end before they are ready ({self.bad_starts} in a row); the last: {cause}")
        self.broken = cause
        for job in list(self.under_way.values()):
            _fail(job, cause)

    async def _serve(self, sampler: Any) -> None:
        """Hand chunks to this sampler until it must be replaced; what it has in hand then goes back to the queue."""
        in_hand = InHand()
        hands = [asyncio.create_task(self._hand(sampler, in_hand)) for _ in range(self.crew.in_hand)]
        try:
            await asyncio.wait(hands, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for hand in hands:
                hand.cancel()
        for end in await asyncio.gather(*hands, return_exceptions=True):
            if isinstance(end, Exception):
                raise end

    async def _hand(self, sampler: Any, in_hand: InHand) -> None:
        """One chunk after another, until the sampler must be replaced."""
        while True:
            job = await self.jobs.get()
            if job.done.done():
                continue
            try:
                await in_hand.take(job)
            except BaseException:
                self.jobs.put_nowait(job)
                raise
            try:
                await sampler.run.remote(job.chunk)
            except RayTaskError as error:
                cause = cause_of(error)
                if not isinstance(cause, InputError):
                    self._raised(job, cause)
                    return  # after an error nobody expected its process is not to be trusted (CUDA errors stay)
                _fail(job, cause)
            except RayError as error:
                in_hand.lost = True
                self._lost(job, error)
                return
            except BaseException:
                job.deaths += in_hand.lost  # it may have been the cause
                self.jobs.put_nowait(job)
                raise
            else:
                self.counts["generated"] += 1
                if not job.done.done():
                    job.done.set_result(True)
            await in_hand.drop(job)

    def _raised(self, job: Job, error: Exception) -> None:
        self.counts["raised"] += 1
        job.raised += 1
        logger.warning("%s raised %s: %s", job.chunk, type(error).__name__, error)
        if job.raised < MAX_RAISES:
            self.jobs.put_nowait(job)
        else:
            text = f"{type(error).__name__}: {error}".strip().splitlines()
            _fail(job, ChunkFailed(f"{job.chunk}: failed {job.raised} times, each in a new process; last: {text[0]}"))

    def _lost(self, job: Job, error: RayError) -> None:
        self.counts["actors lost"] += 1
        job.deaths += 1
        if job.deaths < MAX_DEATHS:
            self.jobs.put_nowait(job)
        else:
            text = str(error).strip().splitlines()[0]
            _fail(job, ChunkFailed(f"{job.chunk}: {job.deaths} samplers died over it; last: {text}"))

    async def _watch(self) -> None:
        """Chunks do not wait for ever when there is nobody to make them."""
        while self.broken is None:
            await asyncio.sleep(min(1.0, self.crew.patience / 4))
            if self.alive or not self.under_way:
                self.last_alive = time.monotonic()
            elif time.monotonic() - self.last_alive > self.crew.patience:
                ask = self.crew.ask
                there, free = await asyncio.to_thread(lambda: (nodes_there(), nodes_free()))
                why = refusal(ask, there) or in_use(ask, there, free)
                error = InputError(f"not one sampler could start in {self.crew.patience:g} s: {why}")
                for job in list(self.under_way.values()):
                    _fail(job, error)
                self.refused.clear()
                self.last_alive = time.monotonic()

    async def status(self) -> dict[str, int]:
        """What was counted since this queue began."""
        return {**self.counts, "alive": len(self.alive)}

    async def sampler_pids(self) -> list[int]:
        """Process ids of the samplers that are ready (for fault tests); waits for the first."""
        await self.begin()
        while not self.alive:
            await asyncio.sleep(0.05)
        found = await asyncio.gather(*[run_in_actor(each, _pid) for each in list(self.alive)], return_exceptions=True)
        return [pid for pid in found if isinstance(pid, int)]


def _pid(actor: Any) -> int:
    return os.getpid()


def _fail(job: Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)


def _end(sampler: Any) -> None:
    """Whatever is left of it: one that was only out of reach would hold its resources."""
    ray.kill(sampler)


def cause_of(error: RayError) -> Exception:
    """What was raised in the other process, without Ray's wrapping."""
    cause = getattr(error, "cause", None)
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    return cause if isinstance(error, RayTaskError) and isinstance(cause, Exception) else error
