"""A pool: workers that have set a recipe up once, fed with items by a dispatcher (`dispatcher.py`).

What happens when something is lost:
- a worker (killed, out of memory, its node gone): its item goes back to the dispatcher; a new worker is asked for, and
  starts when there is room, so the pool shrinks and grows with the cluster;
- a worker that is there and does not answer (stopped, its node hangs), or with which an item takes much longer than
  others did: it is replaced, and the item handed to another (`dispatcher`, `patience`);
- the dispatchers, or they do not answer: Ray starts them again with new workers, and calls that were under way are made
  again. Their state is the store: what is there is not made again, what was under way is;
- the driver: the pool ends with it; the same command resumes from the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edm_ray.distributed.cluster.node_check import require_nodes
from edm_ray.distributed.cluster.preflight import WorkerRequest, preflight, preflight_here
from edm_ray.distributed.dispatcher import PATIENCE_S, ItemFailed, PoolSpec, cause_of
from edm_ray.distributed.dispatchers import Dispatchers
from edm_ray.distributed.news import Listener
from edm_ray.distributed.patience import patience_here
from edm_ray.distributed.shipping import ShippedModel, environment
from edm_ray.errors import InputError
from edm_ray.evaluation.reference import ExtractorSpec
from edm_ray.execution.executor import Item, Recipe
from edm_ray.models.directory import Model
from edm_ray.storage.lease import held

DISPATCHER_RESTARTS = 10
MOST_CALLS = 1_000_000
"""Items that may be asked for at once: waiting ones must not keep those from being asked for that workers need."""
MAX_FAILED = 3
"""So many items that cannot be made end the work; with fewer, the others are made first and kept."""


class ClusterShare(Protocol):
    """What may be taken of a cluster, as `edm_ray.distributed.executor.Ray` says it."""

    @property
    def workers(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def least(self) -> int | None: ...

    @property
    def actors_per_gpu(self) -> int: ...


def ask_for(on: ClusterShare, recipe: Recipe) -> WorkerRequest:
    """What the workers of a recipe take of a cluster."""
    needs = recipe.needs
    cpu = needs.light or on.device == "cpu"
    count = on.workers
    if needs.light:
        count = min(needs.most or on.workers, max(1, int(ray.cluster_resources().get("CPU", 1)) // 2))
    return WorkerRequest(
        what=needs.what,
        count=count,
        least=1 if needs.light else on.least,
        cpus=needs.cpus if cpu else 0.0,
        gpus=0.0 if cpu else 1.0 / on.actors_per_gpu,
        memory=needs.memory,
        share=True,
    )


def check_here(on: ClusterShare, recipes: Iterable[Recipe]) -> None:
    """Before Ray starts, refuse what this machine cannot hold, where this machine is all there will be."""
    for recipe in recipes:
        if not recipe.needs.light:
            preflight_here(ask_for(on, recipe))


def check(on: ClusterShare, recipes: Iterable[Recipe]) -> None:
    """Refuse at once what the cluster cannot hold, and nodes that cannot do the work."""
    for recipe in recipes:
        if not recipe.needs.light:
            ask = ask_for(on, recipe)
            preflight(ask)
            require_nodes(ask, recipe.store, recipe.needs.reads)


def unwrapped(error: RayError) -> Exception:
    """The InputError behind what a call to the dispatcher raised, or an error for people when it is gone."""
    cause = cause_of(error)
    if isinstance(cause, RayError) and not isinstance(error, RayTaskError):
        first = str(cause).strip().splitlines()[0]
        return InputError(
            f"the pool's dispatcher was lost more than {DISPATCHER_RESTARTS} times ({first}); run again: what was made "
            "is kept"
        )
    return cause


@dataclass(frozen=True)
class Pool:
    """A pool as its owner holds it. The owner must: a dispatcher that is started again takes the recipe from the object
    store, and it is there as long as this process refers to it."""

    dispatchers: Any
    """The actor handle (`Dispatchers`); it may be handed on."""
    place: int
    """Its own among those that were opened together."""
    recipe: Any
    listener: Listener

    def ensure(self, *item: Any) -> Any:
        """Reference to whether the item was made for this call (`Dispatcher.ensure`)."""
        return self.dispatchers.ensure.remote(self.place, *item)

    def status(self) -> dict[str, int]:
        found: dict[str, int] = ray.get(self.dispatchers.status.remote(self.place))
        return found

    def worker_pids(self) -> list[int]:
        found: list[int] = ray.get(self.dispatchers.worker_pids.remote(self.place))
        return found

    def make(self, items: Sequence[Item]) -> Iterator[int]:
        """As `Maker.make`: an item that cannot be made is named at the end, after the others are made; wrong input, or
        MAX_FAILED of them, ends it at once."""
        waiting = {self.ensure(*item): number for number, item in enumerate(items)}
        failed: list[ItemFailed] = []
        while waiting and len(failed) < MAX_FAILED:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done)
            try:
                ray.get(done)
            except RayError as error:
                cause = unwrapped(error)
                if not isinstance(cause, ItemFailed):
                    raise cause from None
                failed.append(cause)
            else:
                yield number
        if failed:
            raise InputError("; ".join(str(error) for error in failed) + "; what was made is kept: run again to resume")

    def stop(self) -> None:
        """With those that were opened together."""
        self.listener.leave()
        ray.kill(self.dispatchers)


def start_pools(
    on: ClusterShare, recipes: Sequence[Recipe], *, patience: float = PATIENCE_S, in_hand: int | None = None
) -> tuple[Pool, ...]:
    """Workers start when the first item is missing; the pools live as long as this process and each `Pool`.

    in_hand: items that a worker has at once; by default two on a GPU where the recipe overlaps them, else one.
    """
    env = environment()
    # Beside the driver: on a node of its own the dispatcher could be lost without the driver, and the work with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Dispatchers).options(
        num_cpus=0,
        max_concurrency=MOST_CALLS,
        scheduling_strategy=here,
        max_restarts=DISPATCHER_RESTARTS,
        max_task_retries=-1,
        runtime_env=env or None,
    )
    shared = [_put(shipped(recipe)) for recipe in recipes]
    specs = [_spec(on, recipe, patience, in_hand, env) for recipe in recipes]
    # As bytes: Ray warns of references among the arguments of an actor that it may start again, since they must be kept
    # alive for that; the `Pool` keeps it.
    dispatchers = actor.remote([ray.cloudpickle.dumps(each) for each in shared], specs)
    listener = Listener(dispatchers, specs[0].stuck)
    return tuple(Pool(dispatchers, place, each, listener) for place, each in enumerate(shared))


def _put(value: Any) -> Any:
    """A reference to it in Ray's object store. Raises InputError where that is full, and its disk too."""
    try:
        return ray.put(value)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"Ray's object store on this node is full ({first:.200}), so workers cannot be handed the model: end what "
            "others hold there (`ray memory` shows it), start Ray with a larger --object-store-memory, or free the "
            "disk it spills to"
        ) from error


def _spec(on: ClusterShare, recipe: Recipe, patience: float, in_hand: int | None, env: dict[str, Any]) -> PoolSpec:
    ask, needs = ask_for(on, recipe), recipe.needs
    return PoolSpec(
        ask=ask,
        device="cpu" if ask.gpus == 0 else on.device,
        slots=min(ask.count, needs.most or ask.count),
        patience=patience,
        environment=env,
        in_hand=in_hand or (2 if needs.overlap and ask.gpus else 1),
        light=needs.light,
        leases=held(),
        stuck=patience_here(),
    )


def shipped(recipe: Any) -> Any:
    """The recipe with its weights as NumPy arrays, which workers read where Ray's object store holds them."""
    fields = [field.name for field in dataclasses.fields(recipe) if field.init]
    return dataclasses.replace(recipe, **{name: _shipped(getattr(recipe, name)) for name in fields})


def _shipped(value: Any) -> Any:
    if isinstance(value, Model):
        return ShippedModel.of(value)
    if isinstance(value, ExtractorSpec):
        weights: Any = np.frombuffer(value.weights, np.uint8)
        return dataclasses.replace(value, weights=weights)
    return tuple(_shipped(each) for each in value) if isinstance(value, tuple) else value
