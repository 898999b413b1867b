"""The queue of a pool: one asyncio actor that hands chunks to samplers, and starts samplers.

A chunk that raises is tried MAX_RAISES times, then it alone is refused; one whose sampler dies goes back to the queue.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from edm_ray.errors import InputError
from edm_ray.orchestration.chunks import Chunk, Generator, first_chunks, has_chunk, is_stored, write_chunk
from edm_ray.orchestration.preflight import Ask, in_use, nodes_free, nodes_there, refusal
from edm_ray.orchestration.shipping import ShippedExtractor, ShippedModel
from edm_ray.sampling.device import kind_of
from edm_ray.sampling.generate import generate

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


class Sampler:
    """One actor: seeds in, features in the store out."""

    def __init__(self, model: ShippedModel, extractors: Sequence[ShippedExtractor], store: str, device: str) -> None:
        self.parts, self.store, self.device = (model, extractors), store, device

    def load(self) -> None:
        """Not in the constructor: what is raised here reaches the queue as it is."""
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        model, shipped = self.parts
        self.denoiser = model.denoiser(self.device)
        self.extractors = {extractor.identity: extractor for extractor in (one.load(self.device) for one in shipped)}
        self.kind = kind_of(self.device)
        del self.parts

    def run(self, chunk: Chunk) -> None:
        """The chunk, and of the same images those of the pool's other extractors that are not there."""
        made = chunk.generator
        if made.extractor not in self.extractors:
            names = " and ".join(extractor.name for extractor in self.extractors.values())
            raise InputError(f"{chunk}: asks for another extractor than the {names} that the pool holds")
        images = generate(self.denoiser, chunk.seeds, chunk.settings, made.labels, made.micro_batch, made.precision)
        # The chunk that was asked for comes last: when it is there, so are the others.
        for identity in sorted(self.extractors, key=lambda identity: identity == made.extractor):
            each = dataclasses.replace(chunk, generator=dataclasses.replace(made, extractor=identity))
            if each != chunk and has_chunk(self.store, each):
                continue
            try:
                features = self.extractors[identity].extract(images)
            except FloatingPointError as error:
                raise InputError(f"{chunk}: {error}") from error
            write_chunk(self.store, each, features, self.kind)


@dataclass(eq=False)
class Job:
    """A chunk that is wanted, and who waits for it: True when it was generated, False when it was there."""

    chunk: Chunk
    done: asyncio.Future[bool]
    raised: int = 0
    deaths: int = 0


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many samplers, and what each takes."""

    ask: Ask
    device: str
    patience: float = PATIENCE_S
    environment: dict[str, Any] = field(default_factory=dict)


class Queue:
    """One asyncio actor: hands chunks to idle samplers, resubmits those whose sampler died."""

    def __init__(self, parts: tuple[Any, Any], store: str, crew: Crew) -> None:
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
            num_cpus=ask.cpus, num_gpus=ask.gpus, runtime_env=self.crew.environment or None
        )
        return actor.remote(*self.parts, self.store, self.crew.device)

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
        """Hand chunks to this sampler until it must be replaced."""
        while True:
            job = await self.jobs.get()
            if job.done.done():
                continue
            try:
                await sampler.run.remote(job.chunk)
            except RayTaskError as error:
                cause = cause_of(error)
                if isinstance(cause, InputError):
                    _fail(job, cause)
                    continue
                self._raised(job, cause)
                return  # after an error nobody expected its process is not to be trusted (CUDA errors stay)
            except RayError as error:
                self._lost(job, error)
                return
            except BaseException:
                self.jobs.put_nowait(job)
                raise
            self.counts["generated"] += 1
            if not job.done.done():
                job.done.set_result(True)

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
        found = await asyncio.gather(*[s.__ray_call__.remote(_pid) for s in list(self.alive)], return_exceptions=True)
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
