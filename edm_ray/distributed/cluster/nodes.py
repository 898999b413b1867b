"""The living nodes of a cluster: run a task on each at the same time, and collect what they answer.

Such a task needs no resources, so a busy cluster can be asked too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edm_ray.distributed.shipping import environment

ANSWER_TIMEOUT_S = 120.0
LISTED_TIMEOUT_S = 60.0
"""How long nodes on Ray's list are waited for; with its defaults a dead one is taken off it after 14 to 25 s."""
Node = dict[str, Any]
"""A row of `ray.nodes()`."""


@dataclass(frozen=True)
class Reply:
    """One node's answer, and between which moments of this process's clock it was given."""

    node: Node
    answer: Any
    sent: float
    received: float


@dataclass(frozen=True)
class Replies:
    """What came of asking several nodes; ``failed`` and ``late`` say why, by node id."""

    heard: list[Reply]
    """In the order of node ids."""
    failed: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)

    @property
    def silent(self) -> dict[str, str]:
        return self.failed | self.late


def living() -> list[Node]:
    return [node for node in ray.nodes() if node["Alive"]]


def pinned(node_id: str) -> dict[str, Any]:
    """Options of a task or actor that runs on that node and needs nothing of it."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def on(node: Node, function: Callable[..., Any]) -> Any:
    """A task pinned to a node, in the environment that work gets. A process that dies is no verdict on its node."""
    return ray.remote(max_retries=2, runtime_env=environment() or None, **pinned(node["NodeID"]))(function)


def ask_nodes(nodes: list[Node], start: Callable[[Node], Any], timeout: float = ANSWER_TIMEOUT_S) -> Replies:
    """``start(node)`` gives a reference for each node; waits up to ``timeout`` seconds for all of them."""
    sent, deadline = time.time(), time.monotonic() + timeout
    asked = {start(node): node for node in nodes}
    waiting, heard, failed = list(asked), [], {}
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        node, received = asked[ready[0]], time.time()
        try:
            heard.append(Reply(node, ray.get(ready[0]), sent, received))
        except ray.exceptions.RayError as error:
            failed[node["NodeID"]] = str(error).strip().splitlines()[-1][:200]
    late = {asked[reference]["NodeID"]: f"no answer in {timeout:g} s" for reference in waiting}
    return Replies(sorted(heard, key=lambda each: each.node["NodeID"]), failed, late)


@ray.remote(num_cpus=0, max_retries=0)
def _answer() -> None:
    """Runs where a node lives."""


def wait_until_listed_nodes_answer(seconds: float = LISTED_TIMEOUT_S) -> list[str]:
    """Until every node that Ray lists has run a task or has been taken off the list; returns those that did neither.

    Unlike `ask_nodes` this follows the list: a node that Ray drops meanwhile is no longer waited for.
    """
    asked: dict[str, Any] = {}
    answered: set[str] = set()
    deadline = time.monotonic() + seconds
    while True:
        listed = {node["NodeID"] for node in living()}
        if len(listed) == 1:
            return []  # the one that asks
        for node in listed - asked.keys():
            asked[node] = _answer.options(**pinned(node)).remote()
        answered |= {node for node in asked.keys() - answered if _has_answered(asked[node])}
        silent = sorted(listed - answered)
        if not silent or time.monotonic() > deadline:
            return silent
        time.sleep(0.2)


def _has_answered(reference: Any) -> bool:
    """False also for a node that is gone: it is off the list now or in a moment."""
    if not ray.wait([reference], timeout=0, fetch_local=False)[0]:
        return False
    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return False
    return True
