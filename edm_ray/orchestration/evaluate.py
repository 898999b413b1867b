"""Evaluate one sampler: images on the pool, features to the store, metrics as tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from edm_ray.checkpoint.model import Model
from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.evaluation.measure import Measured, Plan, measure
from edm_ray.evaluation.reference import ExtractorSpec, Reference
from edm_ray.orchestration.chunks import Chunk, Generator, read_chunk
from edm_ray.orchestration.pool import SAMPLER_CPUS, start_pool
from edm_ray.orchestration.session import require_cpus, require_gpus, session
from edm_ray.sampling.generate import MICRO_BATCH


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
    device: str
    precision: str = "fp32"

    def generator(self) -> Generator:
        return Generator(
            model=self.model.hash,
            extractor=self.reference.moments.extractor,
            labels=self.labels,
            micro_batch=MICRO_BATCH,
            device=self.device,
            precision=self.precision,
        )

    def require(self) -> None:
        """Refuse at once what the cluster cannot hold."""
        if self.device == "cuda":
            require_gpus(self.workers)
        else:
            require_cpus(self.workers, SAMPLER_CPUS, "sampling")


@ray.remote(num_cpus=1, max_retries=2)
def measure_task(store: str, chunks: list[Chunk], plan: Plan) -> Measured:
    """All metrics of the chunks' images."""
    features = np.concatenate([read_chunk(store, chunk) for chunk in chunks])
    seeds = np.concatenate([chunk.seeds.numpy() for chunk in chunks])
    return measure(features, seeds, plan)


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
        queue = start_pool(bench.model, bench.extractor, bench.store, bench.workers, bench.device)
        effective = settings.effective(bench.model.denoiser())
        sets = [chunks_for(bench.generator(), effective, first, num_images) for first in starts]
        waiting = [queue.ensure.remote(chunk) for chunks in sets for chunk in chunks]
        total = len(waiting)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            ray.get(done)
            on_chunk(total - len(waiting), total)
        # The pool holds all CPUs it asked for; nothing is left for it to do.
        ray.kill(queue)
        shared = ray.put(plan)
        return list(ray.get([measure_task.remote(bench.store, chunks, shared) for chunks in sets]))
