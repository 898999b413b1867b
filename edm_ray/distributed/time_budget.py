"""A budget in hours of all workers, turned into network evaluations at the speed that this pool has."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from edm_ray.distributed.chunks import chunks_of, is_stored
from edm_ray.distributed.evaluate import Bench, make_chunks
from edm_ray.search.driver import Driver
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.storage import uris


def limit_hours(strategy: Driver, hours: float, bench: Bench, queue: Any, out: str) -> None:
    """Limit the sweep before it starts. Raises InputError when that is too little to confirm anything.

    The speed is written down, so that a sweep that is run again stops at the same place.
    """
    path = uris.join(out, "speed.json")
    if uris.exists(path):
        speed = json.loads(uris.read_bytes(path))["evaluations_per_worker_hour"]
    else:
        speed = _measure(strategy, bench, queue)
        uris.write_bytes(path, json.dumps({"evaluations_per_worker_hour": speed}).encode())
    strategy.search.budget.limit_evaluations(int(hours * speed))


def _measure(strategy: Driver, bench: Bench, queue: Any) -> float:
    """Network evaluations of one image an hour of one worker: a chunk each to warm up, then a chunk each on the clock.

    They are chunks that the sweep looks at anyway.
    """
    settings, plan, workers = strategy.search.registry.samplers[DETERMINISTIC], strategy.plan, bench.workers
    most = plan.strategy.max_chunks + 2 * workers
    chunks = chunks_of(bench.generator(), settings, "search", most, plan.chunk_size)
    new = list(itertools.islice((chunk for chunk in chunks if not is_stored(bench.store, chunk)), 2 * workers))
    make_chunks(queue, new[:workers], lambda done, total: None)
    started = time.monotonic()
    make_chunks(queue, new[workers:], lambda done, total: None)
    images = sum(chunk.size for chunk in new[workers:])
    return images * settings.nfe / (workers * (time.monotonic() - started) / 3600)
