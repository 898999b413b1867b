"""Evaluate one sampler: images on the pool, features to the store, FID as a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import ray

from edm_ray.checkpoint.model import Model
from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.reference import ExtractorSpec, Reference
from edm_ray.orchestration.chunks import Chunk, Generator, chunks_of
from edm_ray.orchestration.pool import SAMPLER_CPUS, fid_task, start_pool
from edm_ray.orchestration.session import require_cpus, require_gpus, session
from edm_ray.sampling.generate import MICRO_BATCH


def chunks_for(generator: Generator, settings: SamplerSettings, num_images: int) -> list[Chunk]:
    """The first ``num_images`` of the "evaluate" pool in chunks of 500 (of 100 below 10,000, so that workers share)."""
    size = 500 if num_images >= 10_000 else 100
    chunks = chunks_of(generator, settings, "evaluate", -(-num_images // size), size)
    rest = num_images - size * (len(chunks) - 1)
    return [*chunks[:-1], dataclasses.replace(chunks[-1], size=rest)]


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


def evaluate_on_ray(
    bench: Bench, settings: SamplerSettings, num_images: int, on_chunk: Callable[[int, int], None]
) -> FidEstimate:
    """FID of ``num_images`` images of the "evaluate" pool of seeds; ``on_chunk(done, total)`` tells how far it is."""
    with session():
        bench.require()
        queue = start_pool(bench.model, bench.extractor, bench.store, bench.workers, bench.device)
        effective = settings.effective(bench.model.denoiser())
        chunks = chunks_for(bench.generator(), effective, num_images)
        waiting = [queue.ensure.remote(chunk) for chunk in chunks]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            ray.get(done)
            on_chunk(len(chunks) - len(waiting), len(chunks))
        result: FidEstimate = ray.get(fid_task.remote(bench.store, chunks, bench.reference))
        ray.kill(queue)
        return result
