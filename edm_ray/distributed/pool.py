"""The pool: samplers that hold the denoiser and the extractors once, fed with chunks from one queue (`queue.py`).

What happens when something is lost:
- a sampler (killed, out of memory, its node gone): its chunk goes back to the queue; a new sampler is asked for, and
  starts when there is room, so the pool shrinks and grows with the cluster;
- the queue: Ray starts it again with new samplers, and calls that were under way are made again. Its state is the chunk
  store: what is there is not made again, what was under way is;
- the driver: the pool ends with it; the same command goes on from the store.
FID is worked out by others (`judge.py`), so that slow algebra never holds a sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edm_ray.distributed.cluster.preflight import Ask
from edm_ray.distributed.dispatcher import PATIENCE_S, Crew, Queue, cause_of
from edm_ray.distributed.shipping import environment, put
from edm_ray.errors import InputError
from edm_ray.evaluation.reference import ExtractorSpec
from edm_ray.models.directory import Model

QUEUE_RESTARTS = 10
MOST_CALLS = 1_000_000
"""Chunks that may be asked for at once: waiting ones must not keep those from being asked for that samplers need."""
# Samplers leave a little of each CPU for trials, the queue and judges, which mostly wait.
SAMPLER_CPUS = 0.9


def unwrapped(error: RayError) -> Exception:
    """The InputError behind what a call to the queue raised, or an error for people when the queue is gone."""
    cause = cause_of(error)
    if isinstance(cause, RayError) and not isinstance(error, RayTaskError):
        first = str(cause).strip().splitlines()[0]
        return InputError(
            f"the pool's queue was lost more than {QUEUE_RESTARTS} times ({first}); run again: chunks are kept"
        )
    return cause


def ask_for(
    model: Model,
    extractors: Sequence[ExtractorSpec],
    size: int,
    device: str,
    *,
    actors_per_gpu: int = 1,
    least: int | None = None,
) -> Ask:
    """What a pool of ``size`` samplers takes. ``least``: with so many it is worth starting (default all)."""
    if size < 1 or actors_per_gpu < 1 or not 1 <= (least or 1) <= size:
        raise InputError(
            f"workers {least or size} to {size}, {actors_per_gpu} a GPU: give 1 or more, least not above most"
        )
    tensors = len(model.weights) + (0 if model.guide is None else len(model.guide.weights))
    return Ask(
        what="sampling",
        count=size,
        least=least,
        cpus=SAMPLER_CPUS if device == "cpu" else 0.0,
        gpus=0.0 if device == "cpu" else 1.0 / actors_per_gpu,
        # Tensors in the store and in the network, extractors, and half a GiB of Python and torch.
        memory=2 * tensors + 3 * sum(len(spec.weights) for spec in extractors) + (1 << 29),
        share=True,
    )


@dataclass(frozen=True)
class Pool:
    """A pool as its owner holds it. The owner must: a queue that is started again takes the weights from the object
    store, and they are there as long as this process refers to them."""

    queue: Any
    """The actor handle (`Queue.ensure`); it may be handed on."""
    parts: tuple[Any, Any]
    """Model and extractors."""

    def stop(self) -> None:
        ray.kill(self.queue)


def start_pool(
    model: Model,
    extractors: Sequence[ExtractorSpec],
    store: str,
    size: int,
    device: str,
    *,
    ask: Ask | None = None,
    patience: float = PATIENCE_S,
    in_hand: int | None = None,
) -> Pool:
    """Samplers begin to start at once; the pool lives as long as this process and the `Pool`.

    in_hand: chunks that a sampler has at once; by default two on a GPU, and one on a CPU, where taking features beside
    sampling would take another core than the one it asked for.
    """
    ask = ask or ask_for(model, extractors, size, device)
    crew = Crew(
        ask=ask,
        device=device,
        patience=patience,
        environment=environment(),
        in_hand=in_hand or (1 if device == "cpu" else 2),
    )
    # Beside the driver: on a node of its own the queue could be lost without the driver, and the sweep with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Queue).options(
        num_cpus=0,
        max_concurrency=MOST_CALLS,
        scheduling_strategy=here,
        max_restarts=QUEUE_RESTARTS,
        max_task_retries=-1,
        runtime_env=crew.environment or None,
    )
    parts = put(model, extractors)
    # As bytes: Ray warns of references among the arguments of an actor that it may start again, since they must be kept
    # alive for that; the `Pool` keeps them.
    queue = actor.remote(ray.cloudpickle.dumps(parts), store, crew)
    queue.begin.remote()
    return Pool(queue, parts)
