"""A budget in hours of all workers, turned into network evaluations at the speed that they have."""

from __future__ import annotations

import itertools
import time

from edm_ray.errors import IntegrityError
from edm_ray.evaluation.chunks import Chunk, Generator, chunks_of
from edm_ray.execution.executor import Maker, make_all
from edm_ray.search.driver import AskTell
from edm_ray.storage import uris
from edm_ray.storage.artifacts import is_stored
from edm_ray.storage.versioned import read_json, write_json

FIX = "delete it and run again: the speed is measured again"


def limit_hours(
    driver: AskTell, hours: float, sampling: Maker, workers: int, generator: Generator, store: str, out: str
) -> None:
    """Limit the sweep before it starts. Raises InputError when that is too little to confirm anything.

    The speed is written down, so that a sweep that is run again stops at the same place.
    """
    path = uris.join(out, "speed.json")
    if uris.exists(path):
        speed = read_json(path, FIX).get("evaluations_per_worker_hour")
        if not isinstance(speed, (int, float)):
            raise IntegrityError(f"{path}: no number of evaluations_per_worker_hour; {FIX}")
    else:
        speed = _measure(driver, sampling, workers, generator, store)
        write_json(path, {"evaluations_per_worker_hour": speed})
    driver.limit_evaluations(int(hours * speed))


def _measure(driver: AskTell, sampling: Maker, workers: int, generator: Generator, store: str) -> float:
    """Network evaluations of one image an hour of one worker: a chunk each to warm up, then a chunk each on the clock.

    They are chunks that the sweep looks at anyway.
    """
    sampler, plan = driver.baseline, driver.plan
    chunks = chunks_of(generator, sampler, "search", plan.strategy.max_chunks + 2 * workers, plan.chunk_size)
    absent = (chunk for chunk in chunks if not is_stored(store, chunk))
    new: list[tuple[Chunk]] = [(chunk,) for chunk in itertools.islice(absent, 2 * workers)]
    make_all(sampling, new[:workers])
    started = time.monotonic()
    make_all(sampling, new[workers:])
    images = sum(chunk.size for (chunk,) in new[workers:])
    return float(images * sampler.nfe / (workers * (time.monotonic() - started) / 3600))
