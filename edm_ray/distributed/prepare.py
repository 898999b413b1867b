"""Prepare a data set as Ray tasks: one task a shard, on any node that sees the source and the destination.

A shard depends on the plan and its number alone, so neither the number of workers nor a retry changes a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from edm_ray.data.manifest import DataSet
from edm_ray.data.plan import Plan, finish, prepare_shard
from edm_ray.data.write import ShardEntry, shard_edges
from edm_ray.distributed.cluster.node_check import require_nodes
from edm_ray.distributed.cluster.preflight import Ask, preflight
from edm_ray.distributed.session import session
from edm_ray.distributed.shipping import environment
from edm_ray.errors import InputError

TASK_CPUS = 1
MAX_RETRIES = 3


def prepare_on_ray(dest: str, plan: Plan, workers: int, on_shard: Callable[[int, int], None]) -> DataSet:
    """``workers`` shards at a time; ``on_shard(records done, records)`` as shards end.

    The first InputError of a task ends the run (shards that are done stay); a task whose node dies is run again.
    """
    with session():
        ask = Ask(what="prepare", count=workers, cpus=TASK_CPUS)
        preflight(ask)
        require_nodes(ask, dest)
        task: Any = ray.remote(prepare_shard).options(
            num_cpus=TASK_CPUS, max_retries=MAX_RETRIES, runtime_env=environment()
        )
        shared = ray.put(plan)
        edges = shard_edges(plan.records, plan.num_shards)
        entries: dict[int, ShardEntry] = {}
        under_way: dict[Any, int] = {}
        waiting = iter(range(plan.num_shards))
        done = 0
        try:
            while len(entries) < plan.num_shards:
                while len(under_way) < workers and (index := next(waiting, None)) is not None:
                    under_way[task.remote(dest, shared, index)] = index
                ready, _ = ray.wait(list(under_way), num_returns=1)
                index = under_way.pop(ready[0])
                entries[index] = ray.get(ready[0])
                done += edges[index + 1] - edges[index]
                on_shard(done, plan.records)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise
        finally:
            for reference in under_way:
                ray.cancel(reference)
        return finish(dest, plan, [entries[index] for index in range(plan.num_shards)])
