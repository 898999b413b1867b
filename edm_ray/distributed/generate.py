"""Images by many: the pool samples them into a store of chunks, this process takes them from there in order.

So `edm-ray generate` has the pool's manners: lost samplers, nodes and a lost queue are outlived, and a killed command
goes on from the chunks that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edm_ray.diffusion.samplers import Sampler
from edm_ray.distributed.chunks import Generator, read_parts
from edm_ray.distributed.cluster.preflight import preflight, preflight_here
from edm_ray.distributed.evaluate import chunks_for, made_in_turn
from edm_ray.distributed.pool import ask_for, start_pool
from edm_ray.distributed.session import session
from edm_ray.evaluation.extractors import pixels
from edm_ray.evaluation.reference import ExtractorSpec
from edm_ray.generation.generate import MICRO_BATCH
from edm_ray.models.directory import Model

KEEP = ExtractorSpec(name=pixels.NAME, weights=b"", sha256="")


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who samples."""

    workers: int
    """At most."""
    least: int
    """So many are enough to begin."""
    device: str
    store: str
    """Where chunks of images lie meanwhile: a place that every node sees."""


def images_on_ray(
    model: Model,
    settings: Sampler,
    seeds: range,
    labels: str,
    precision: str,
    crew: Crew,
    on_chunk: Callable[[int, int], None],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(seeds int64 [n], images uint8 [n, C, H, W]) in parts, in the order of the seeds; the bits are those of one
    process. ``on_chunk(done, total)`` says how far it is."""
    ask = ask_for(model, [KEEP], crew.workers, crew.device, least=crew.least)
    preflight_here(ask)
    with session():
        preflight(ask)
        effective = settings.effective(model.denoiser())
        made = Generator(
            model=model.hash,
            extractor=pixels.Pixels.identity,
            labels=labels,
            micro_batch=MICRO_BATCH,
            device=crew.device,
            precision=precision,
        )
        chunks = chunks_for(made, effective, seeds.start, len(seeds), MICRO_BATCH)
        pool = start_pool(model, [KEEP], crew.store, crew.workers, crew.device, ask=ask)
        there, following = set[int](), 0
        try:
            for count, number in enumerate(made_in_turn(pool.queue, [(chunk,) for chunk in chunks]), 1):
                on_chunk(count, len(chunks))
                there.add(number)
                while following in there:
                    for part in read_parts(crew.store, [chunks[following]], seeds):
                        yield part.seeds, part.features
                    following += 1
        finally:
            pool.stop()
