"""Judges: the processes that work out the FIDs of a sweep, so that slow algebra holds neither a sampler nor a trial.

They are few and live as long as the sweep. (A task for each FID starts a process for each trial in flight, and each
imports torch: with 64 features that took longer than all of the algebra.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from edm_ray.distributed.chunks import Generator, first_chunks, gather
from edm_ray.evaluation.reference import Reference, estimate_fid

NUM_GROUPS = 10
JUDGE_CPUS = 0.05
"""Samplers leave so little of each CPU; a judge works now and then."""


class Judge:
    """FIDs of what is in the chunk store, against one reference."""

    def __init__(self, store: str, reference: bytes) -> None:
        """reference: where it is in the object store (see `start_judges`)."""
        self.store = store
        self.reference: Reference = ray.get(ray.cloudpickle.loads(reference))

    def fid(
        self, generator: Generator, settings: Mapping[str, Any], pool: str, count: int, size: int
    ) -> dict[str, Any]:
        """FID of the first ``count`` chunks of a pool of seeds, with jackknife groups by seed: plain values."""
        features, seeds = gather(self.store, first_chunks(generator, settings, pool, count, size))
        return estimate_fid(features, seeds, self.reference, NUM_GROUPS).to_dict()


@dataclass(frozen=True)
class Judges:
    """Judges as their owner holds them. The owner must: one that is started again takes the reference from the object
    store, and it is there as long as this process refers to it."""

    actors: tuple[Any, ...]
    """Handles; they may be handed on."""
    reference: Any

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def start_judges(store: str, reference: Reference, most: int) -> Judges:
    """One for every two CPUs of the cluster, at most ``most``. The caller stops them."""
    count = max(1, min(most, int(ray.cluster_resources().get("CPU", 1)) // 2))
    # A judge has no state: where its node is lost, another takes its calls.
    actor = ray.remote(Judge).options(
        num_cpus=JUDGE_CPUS, scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=-1
    )
    shared = ray.put(reference)
    # As bytes: Ray warns of references among the arguments of an actor that it may start again. `Judges` keeps this.
    place = ray.cloudpickle.dumps(shared)
    return Judges(tuple(actor.remote(store, place) for _ in range(count)), shared)
