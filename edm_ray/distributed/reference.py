"""Measure the parts of a reference with actors, on any node that sees the data set and the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from edm_ray.data.manifest import DataSet
from edm_ray.distributed.cluster.node_check import require_nodes
from edm_ray.distributed.cluster.preflight import Ask, preflight, preflight_here
from edm_ray.distributed.dispatcher import cause_of
from edm_ray.distributed.session import session
from edm_ray.distributed.shipping import ShippedExtractor, environment
from edm_ray.errors import InputError
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.parts import Part, PartMeter
from edm_ray.evaluation.reference import ExtractorSpec

RETRIES = 10
"""How often one actor may be started again, and one part be measured again, after a process or node was lost."""


class Meter:
    """One actor: the extractor, loaded once."""

    def __init__(self, dataset: DataSet, store: str, device: str):
        torch.set_num_threads(1)
        self.dataset, self.store, self.device = dataset, store, device
        self.meter: PartMeter | None = None

    def finish(self, part: Part, shipped: ShippedExtractor, chosen: np.ndarray) -> None:
        """The last two come with every call (read where they lie, not copied) and not to the constructor: Ray warns of
        references that it must keep alive to start an actor again."""
        if self.meter is None:
            extractor = shipped.load(self.device)
            assert isinstance(extractor, Extractor)
            self.meter = PartMeter(self.dataset, extractor, np.array(chosen), self.store, self.device)
        self.meter.finish(part)


def measure_on_ray(
    dataset: DataSet,
    spec: ExtractorSpec,
    chosen: np.ndarray,
    store: str,
    parts: list[Part],
    workers: int,
    device: str,
    on_part: Callable[[int, int], None],
) -> None:
    """Return when all parts are in the store; ``on_part(rows done, rows)`` as they end.

    A lost actor is started again, on another node if need be, and its part is measured again. Wrong input ends it;
    what is finished is kept.
    """
    ask = Ask(
        what="the reference",
        count=workers,
        cpus=1.0 if device == "cpu" else 0.0,
        gpus=0.0 if device == "cpu" else 1.0,
        memory=3 * len(spec.weights) + (1 << 29),
    )
    preflight_here(ask)
    with session():
        preflight(ask)
        require_nodes(ask, store, reads=(dataset.uri,))
        actor: Any = ray.remote(Meter).options(
            num_cpus=ask.cpus,
            num_gpus=ask.gpus,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            runtime_env=environment() or None,
        )
        shipped, kept = ray.put(ShippedExtractor.of(spec)), ray.put(chosen)
        idle = [actor.remote(dataset, store, device) for _ in range(min(workers, len(parts)))]
        waiting, under_way, done = list(reversed(parts)), {}, 0
        try:
            while waiting or under_way:
                while waiting and idle:
                    meter, part = idle.pop(), waiting.pop()
                    under_way[meter.finish.remote(part, shipped, kept)] = (meter, part)
                ready, _ = ray.wait(list(under_way), num_returns=1)
                meter, part = under_way.pop(ready[0])
                ray.get(ready[0])
                idle.append(meter)
                done += part.stop - part.first
                on_part(done, parts[-1].stop)
        except RayTaskError as error:
            raise cause_of(error) from None
        except RayActorError as error:
            raise InputError(
                f"rows {part.first}..{part.stop - 1} of {dataset.uri}: the processes that measure them end, {RETRIES} "
                f"times now ({str(error).splitlines()[0]}); run again: what is finished is kept"
            ) from None
