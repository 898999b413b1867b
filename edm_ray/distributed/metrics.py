"""What a run or sweep tells Ray's metrics, for Prometheus and Grafana (cluster/grafana/edm-ray.json).

Ray puts ``ray_`` before each name. Gauges are made when they are first set, in whatever process that is, and cost
nothing where nobody collects them.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass

from ray.util.metrics import Gauge

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measure:
    name: str
    about: str
    tag: str
    """run: the place of a run or sweep; pool: what a pool of workers is for."""


IMAGES_PER_SECOND = Measure("edm_ray_images_per_second", "Training images a second, of all workers, last tick", "run")
IMAGES_SEEN = Measure("edm_ray_images_seen", "Training images seen so far", "run")
LOSS = Measure("edm_ray_loss", "Training loss, last tick", "run")
QUEUE = Measure("edm_ray_queue", "Items that wait for a worker of a pool", "pool")
WORKERS = Measure("edm_ray_workers", "Workers of a pool that are at work", "pool")
BEST_FID = Measure("edm_ray_best_fid", "Lowest FID of a sweep so far; those of different n are not comparable", "run")
ENDED = Measure("edm_ray_trials", "Evaluations of a sweep that have ended", "run")
MEASURES = (IMAGES_PER_SECOND, IMAGES_SEEN, LOSS, QUEUE, WORKERS, BEST_FID, ENDED)


@functools.cache
def _gauge(measure: Measure) -> Gauge:
    return Gauge(measure.name, description=measure.about, tag_keys=(measure.tag,))


def tell(measure: Measure, value: float, of: str) -> None:
    """of: which run or pool. A failure is logged: metrics stop nothing."""
    if not math.isfinite(value):
        return
    try:
        _gauge(measure).set(float(value), tags={measure.tag: of})
    except Exception as error:
        logger.debug("%s: %s", measure.name, error)


def tell_tick(row: dict[str, float], run_uri: str) -> None:
    """A row of metrics.jsonl."""
    for measure, key in ((IMAGES_PER_SECOND, "images_per_s"), (IMAGES_SEEN, "nimg"), (LOSS, "loss")):
        if isinstance(row.get(key), (int, float)):
            tell(measure, row[key], run_uri)
