"""Evaluate one sampler: images on the pool, features to the store, metrics as tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from edm_ray.diffusion.samplers import Sampler
from edm_ray.distributed.chunks import POOL_START, Chunk, Generator
from edm_ray.distributed.cluster.preflight import Ask, preflight, preflight_here
from edm_ray.distributed.dispatcher import ChunkFailed
from edm_ray.distributed.metrics import Answer, Metrics
from edm_ray.distributed.pool import Pool, ask_for, start_pool, unwrapped
from edm_ray.distributed.session import session
from edm_ray.errors import InputError
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.reference import ExtractorSpec, Reference
from edm_ray.generation.generate import MICRO_BATCH
from edm_ray.models.directory import Model

MAX_FAILED_CHUNKS = 3
"""An evaluation with so many chunks that cannot be made stops; with fewer, the others are made first and kept."""
CHUNK_IMAGES = 100


def chunks_for(
    generator: Generator, settings: Sampler, first: int, num_images: int, size: int = CHUNK_IMAGES
) -> list[Chunk]:
    """Whole chunks that cover ``num_images`` seeds from ``first``, on the one grid that its pool of seeds has: so that
    evaluations of any size share them. They may reach a little beyond on both sides."""
    origin = max(start for start in POOL_START.values() if start <= first)
    begin = first - (first - origin) % size
    return [
        Chunk(generator=generator, settings=settings, first=start, size=size)
        for start in range(begin, first + num_images, size)
    ]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every evaluation of one model needs: who samples, what judges, where chunks are kept."""

    model: Model
    extractor: ExtractorSpec
    reference: Reference
    store: str
    labels: str
    workers: int
    """Samplers, at most."""
    device: str
    precision: str = "fp32"
    least_workers: int | None = None
    """Start with so many, take more when the cluster grows; None: all must fit the cluster."""
    actors_per_gpu: int = 1
    more_extractors: tuple[ExtractorSpec, ...] = ()
    """Their features are taken of the same images."""

    def generator(self) -> Generator:
        return Generator(
            model=self.model.hash,
            extractor=self.reference.moments.extractor,
            labels=self.labels,
            micro_batch=MICRO_BATCH,
            device=self.device,
            precision=self.precision,
        )

    @property
    def extractors(self) -> tuple[ExtractorSpec, ...]:
        return (self.extractor, *self.more_extractors)

    def ask(self) -> Ask:
        return ask_for(
            self.model,
            self.extractors,
            self.workers,
            self.device,
            actors_per_gpu=self.actors_per_gpu,
            least=self.least_workers,
        )

    def require_here(self) -> None:
        """Before Ray starts, refuse what this machine cannot hold, where this machine is all there will be."""
        preflight_here(self.ask())

    def require(self) -> None:
        """Refuse at once what the cluster cannot hold."""
        preflight(self.ask())

    def start(self) -> Pool:
        """Its pool; the caller stops it."""
        return start_pool(self.model, self.extractors, self.store, self.workers, self.device, ask=self.ask())


def made_in_turn(queue: Any, batches: Sequence[Sequence[Chunk]]) -> Iterator[int]:
    """Have all chunks in the store; numbers of batches as they are done.

    The chunks of a batch are of the same images: when the first is there the others are too, as a rule, and are asked
    for one after another. A chunk that cannot be made is named in the InputError at the end, after the others are made;
    wrong input, or MAX_FAILED_CHUNKS of them, ends it at once.
    """
    waiting = {queue.ensure.remote(batch[0]): (number, 0) for number, batch in enumerate(batches)}
    failed: list[ChunkFailed] = []
    while waiting and len(failed) < MAX_FAILED_CHUNKS:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        number, place = waiting.pop(done)
        try:
            ray.get(done)
        except RayError as error:
            cause = unwrapped(error)
            if not isinstance(cause, ChunkFailed):
                raise cause from None
            failed.append(cause)
            continue
        if place + 1 < len(batches[number]):
            waiting[queue.ensure.remote(batches[number][place + 1])] = (number, place + 1)
        else:
            yield number
    if failed:
        raise InputError("; ".join(str(error) for error in failed) + "; what was made is kept: run again to go on")


def make_chunks(queue: Any, chunks: Sequence[Chunk], on_chunk: Callable[[int, int], None]) -> None:
    """Return when all of them are in the store; raises as `made_in_turn` does."""
    for count, _ in enumerate(made_in_turn(queue, [(chunk,) for chunk in chunks]), 1):
        on_chunk(count, len(chunks))


def evaluate_on_ray(
    bench: Bench,
    settings: Sampler,
    starts: Sequence[int],
    num_images: int,
    plans: Sequence[Plan],
    on_chunk: Callable[[int, int], None],
) -> list[list[Answer]]:
    """Measure ``num_images`` images for each first seed in ``starts``, by each plan: [start][plan].

    Images are sampled once for all plans; a set is measured while the next is sampled. ``on_chunk(done, total)`` says
    how far it is.
    """
    bench.require_here()
    with session():
        bench.require()
        effective = settings.effective(bench.model.denoiser())
        generators = [
            dataclasses.replace(bench.generator(), extractor=plan.reference.moments.extractor) for plan in plans
        ]
        sets = [[chunks_for(made, effective, first, num_images) for made in generators] for first in starts]
        # Two references may be of one extractor; its chunks are asked for once.
        batches = [tuple(dict.fromkeys(batch)) for chunks in sets for batch in zip(*chunks, strict=True)]
        each = len(batches) // len(sets)
        metrics = [Metrics(plan) for plan in plans]
        left = [each] * len(sets)
        tasks: dict[int, list[Any]] = {}
        pool = bench.start()
        try:
            for count, number in enumerate(made_in_turn(pool.queue, batches), 1):
                on_chunk(count, len(batches))
                which = number // each
                left[which] -= 1
                if not left[which]:
                    within = range(starts[which], starts[which] + num_images)
                    tasks[which] = [
                        one.begin(bench.store, chunks, within) for chunks, one in zip(sets[which], metrics, strict=True)
                    ]
        finally:
            # The pool holds all CPUs it asked for; nothing is left for it to do.
            pool.stop()
        try:
            return [
                [one.end(begun) for one, begun in zip(metrics, tasks[which], strict=True)] for which in range(len(sets))
            ]
        except RayError as error:
            raise unwrapped(error) from None
