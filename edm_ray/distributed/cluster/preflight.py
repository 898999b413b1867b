"""Compare what a command asks for with what the cluster has, before anything is started: an error at once, not a wait.

"Not there" (no node can ever hold it) is refused at once. "In use" (others hold it now) is waited for a stated time,
then refused too. What an autoscaler may add is not known to Ray; `EDM_RAY_MAX_CPUS` and `EDM_RAY_MAX_GPUS` say it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ray
import torch

from edm_ray.distributed.ray_private import free_resources
from edm_ray.errors import InputError

logger = logging.getLogger(__name__)
IN_USE_PATIENCE_S = 60.0
"""How long resources that others hold are waited for."""
_POLL_S = 0.25
QUIET_S = 5.0
"""A wait that is no longer is not worth a word: a pool that has just ended lets go of what it held."""
_GIB = 1 << 30
Resources = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class WorkerRequest:
    """``count`` workers of equal size; each must fit one node."""

    what: str
    """What they are for, as messages say it."""
    count: int
    least: int | None = None
    """Fewer will do for a start; None: all are needed."""
    cpus: float = 0.0
    gpus: float = 0.0
    memory: int = 0
    """Bytes each, about. Compared with the nodes; not reserved."""
    share: bool = False
    """They take turns: one that is free is enough to begin."""

    @property
    def needed(self) -> int:
        return self.count if self.least is None else self.least

    def fits(self, resources: Resources) -> int:
        """How many of them a node with these resources holds."""
        each = {"CPU": self.cpus, "GPU": self.gpus}
        held = [holds(kind, resources.get(kind, 0.0), need) for kind, need in each.items() if need > 0]
        return min(held, default=self.count)

    def describe(self, count: int) -> str:
        parts = [f"{count * self.gpus:g} GPUs"] if self.gpus else []
        parts += [f"{count * self.cpus:g} CPUs"] if self.cpus and not self.gpus else []
        return f"{self.what} needs {' and '.join(parts)}"


def holds(kind: str, have: float, each: float) -> int:
    """How many workers that take ``each`` of a kind find room in what one node has of it.

    Part of a GPU is part of one card: 8 cards hold 8 workers of 0.75, not 10. Ray says how much of its GPUs a node has
    free, not on which cards; a fraction of that counts as the rest of a single card.
    """
    if kind == "GPU" and each < 1.0:
        cards = int(have + 1e-9)
        return cards * int(1.0 / each + 1e-9) + int((have - cards) / each + 1e-9)
    return int(have / each + 1e-9)


def total(nodes: Iterable[Resources], kind: str) -> float:
    return sum(node.get(kind, 0.0) for node in nodes)


def nodes_there() -> list[Resources]:
    """Resources of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_free() -> list[Resources]:
    """What nobody holds at this moment, node by node."""
    return list(free_resources())


def may_grow_to(kind: str) -> float:
    """How many of "CPU" or "GPU" an autoscaler may bring the cluster to, by its manifest; 0 when that says nothing."""
    return float(os.environ.get(f"EDM_RAY_MAX_{kind}S", 0))


def refusal(ask: WorkerRequest, nodes: list[Resources]) -> str | None:
    """Why this can never be placed on these nodes; None when it can, or when the cluster may grow to it."""
    fits, count = sum(ask.fits(node) for node in nodes), ask.needed
    kind, each = ("GPU", ask.gpus) if ask.gpus else ("CPU", ask.cpus)
    grows = may_grow_to(kind)
    if fits < count and count > holds(kind, grows, each):
        have = max(total(nodes, kind), grows)
        fix = f"give --workers {fits} or fewer, or a larger cluster" if fits else "add a node that holds one"
        if kind == "GPU":
            fix += ", or --device cpu"
        why = f"the cluster has {have:g}"
        if have >= count * each:
            sizes = ", ".join(sorted({f"{node.get(kind, 0.0):g}" for node in nodes}))
            why += f", on nodes of {sizes}, which hold {fits} of {each:g} {kind}s each"
            if ask.cpus and ask.gpus:
                why += f" with {ask.cpus:g} CPUs"
        device = "--device cuda " if kind == "GPU" else ""
        return f"{device}--workers {count}: {ask.describe(count)}, {why}; {fix}"
    largest = max((node.get("memory", 0.0) for node in nodes if ask.fits(node)), default=0.0)
    if fits and ask.memory > largest > 0:
        return (
            f"{ask.what} needs about {ask.memory / _GIB:.1f} GiB of memory in each worker, the largest node of the "
            f"cluster gives {largest / _GIB:.1f} GiB; take larger nodes"
        )
    return None


def preflight_here(ask: WorkerRequest) -> None:
    """Before a local Ray starts (seconds): refuse what this machine cannot hold. Does nothing where a cluster is named
    or Ray runs already; `preflight` says the same of those."""
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return
    cpus = float(os.environ.get("EDM_RAY_LOCAL_CPUS") or os.cpu_count() or 1)
    if message := refusal(ask, [{"CPU": cpus, "GPU": float(torch.cuda.device_count())}]):
        raise InputError(message)


def preflight(ask: WorkerRequest, patience: float | None = None) -> int:
    """How many of them find room at once: the needed number, or with ``share`` at least one.

    0 only when an autoscaler is to bring the room. Raises InputError at once for what can never be placed ("has"),
    and after ``patience`` seconds (default IN_USE_PATIENCE_S) for what others hold ("in use").
    """
    if message := refusal(ask, nodes_there()):
        raise InputError(message)
    kind = "GPU" if ask.gpus else "CPU"
    count, told = 1 if ask.share else ask.needed, False
    began = time.monotonic()
    deadline = began + (IN_USE_PATIENCE_S if patience is None else patience)
    while True:
        there, free = nodes_there(), nodes_free()
        room = sum(ask.fits(node) for node in free)
        if room >= count or may_grow_to(kind) > total(there, kind):
            return min(room, ask.count)
        if time.monotonic() > deadline:
            raise InputError(f"{in_use(ask, there, free)}; wait for them to end, or take a larger cluster")
        if not told and time.monotonic() - began > QUIET_S:
            told = True
            logger.warning("%s; waiting for them", in_use(ask, there, free))
        time.sleep(_POLL_S)


def in_use(ask: WorkerRequest, there: list[Resources], free: list[Resources]) -> str:
    kind = "GPU" if ask.gpus else "CPU"
    have, left = total(there, kind), total(free, kind)
    return (
        f"--workers {ask.needed}: {ask.describe(ask.needed)}, the cluster has {have:g} of which {have - left:g} are in "
        f"use by others and {left:g} are free"
    )
