"""Evaluate one sampler: images on the pool, features to the store, metrics as tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from edm_ray.checkpoint.model import Model
from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.errors import InputError
from edm_ray.evaluation.measure import Measured, Plan, measure
from edm_ray.evaluation.reference import ExtractorSpec, Reference
from edm_ray.orchestration.chunks import Chunk, Generator, gather
from edm_ray.orchestration.nodes import require_nodes
from edm_ray.orchestration.pool import Pool, ask_for, start_pool, unwrapped
from edm_ray.orchestration.preflight import Ask, preflight
from edm_ray.orchestration.queue import ChunkFailed
from edm_ray.orchestration.session import session
from edm_ray.sampling.generate import MICRO_BATCH

MAX_FAILED_CHUNKS = 3
"""An evaluation with so many chunks that cannot be made stops; with fewer, the others are made first and kept."""


def chunks_for(generator: Generator, settings: SamplerSettings, first: int, num_images: int) -> list[Chunk]:
    """Seeds from ``first`` in chunks of 500 (of 100 below 10,000 images, so that workers share)."""
    size = 500 if num_images >= 10_000 else 100
    starts = range(0, num_images, size)
    return [
        Chunk(generator=generator, settings=settings, first=first + start, size=min(size, num_images - start))
        for start in starts
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

    def generator(self) -> Generator:
        return Generator(
            model=self.model.hash,
            extractor=self.reference.moments.extractor,
            labels=self.labels,
            micro_batch=MICRO_BATCH,
            device=self.device,
            precision=self.precision,
        )

    def ask(self) -> Ask:
        return ask_for(
            self.model,
            self.extractor,
            self.workers,
            self.device,
            actors_per_gpu=self.actors_per_gpu,
            least=self.least_workers,
        )

    def require(self) -> None:
        """Refuse at once what the cluster cannot hold, and nodes that could not do it."""
        ask = self.ask()
        preflight(ask)
        require_nodes(ask, self.store)

    def start(self) -> Pool:
        """Its pool; the caller stops it."""
        return start_pool(self.model, self.extractor, self.store, self.workers, self.device, ask=self.ask())


@ray.remote(num_cpus=1, max_retries=2)
def measure_task(store: str, chunks: list[Chunk], plan: Plan) -> Measured:
    """All metrics of the chunks' images."""
    features, seeds = gather(store, chunks)
    return measure(features, seeds, plan)


def make_chunks(queue: Any, chunks: Sequence[Chunk], on_chunk: Callable[[int, int], None]) -> None:
    """Return when all of them are in the store.

    A chunk that cannot be made is named in the InputError at the end, after the others are made; wrong input, or
    MAX_FAILED_CHUNKS of them, ends it at once.
    """
    waiting = [queue.ensure.remote(chunk) for chunk in chunks]
    total, failed = len(waiting), []
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        try:
            ray.get(done)
        except RayError as error:
            cause = unwrapped(error)
            if not isinstance(cause, ChunkFailed):
                raise cause from None
            failed.append(cause)
            if len(failed) >= MAX_FAILED_CHUNKS:
                break
        on_chunk(total - len(waiting), total)
    if failed:
        raise InputError("; ".join(str(error) for error in failed) + "; what was made is kept: run again to go on")


def evaluate_on_ray(
    bench: Bench,
    settings: SamplerSettings,
    starts: Sequence[int],
    num_images: int,
    plan: Plan,
    on_chunk: Callable[[int, int], None],
) -> list[Measured]:
    """Measure ``num_images`` images for each first seed in ``starts``; ``on_chunk(done, total)`` says how far it is."""
    with session():
        bench.require()
        pool = bench.start()
        try:
            effective = settings.effective(bench.model.denoiser())
            sets = [chunks_for(bench.generator(), effective, first, num_images) for first in starts]
            make_chunks(pool.queue, [chunk for chunks in sets for chunk in chunks], on_chunk)
        finally:
            # The pool holds all CPUs it asked for; nothing is left for it to do.
            pool.stop()
        shared = ray.put(plan)
        try:
            return list(ray.get([measure_task.remote(bench.store, chunks, shared) for chunks in sets]))
        except RayError as error:
            raise unwrapped(error) from None
