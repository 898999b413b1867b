"""What Ray Train's elasticity leaves out: not planning with a node that is gone, and growing without losing a step.

When a node is lost, Ray Train plans the next group of workers at once, with the nodes that Ray lists. A lost node stays
on that list until its health checks have failed (seconds to half a minute), and Ray's AutoscalingCoordinator copies the
list every 20 s only; a group planned with it waits out its start timeout before Ray plans again.

When a node comes, Ray Train kills the group that runs and starts a larger one from the last checkpoint. Here workers
see the room themselves, make a checkpoint after the step under way and end; the driver starts the larger group.
docs/training.md has what was measured of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edm_ray.distributed.cluster.preflight import Ask, nodes_free

WAIT_S = 60.0
"""At most so long for nodes that Ray lists to answer; with its defaults Ray takes a dead one off after 14 to 25 s."""
ROOM_POLL_S = 5.0
NEVER_S = 1e9
"""For Ray Train's own look at what it could grow to."""


@ray.remote(num_cpus=0, max_retries=0)
def _answer() -> None:
    """Runs where a node lives."""


def wait_until_listed_nodes_answer(seconds: float = WAIT_S) -> list[str]:
    """Until every node that Ray lists has run a task or has been taken off the list; returns those that did neither."""
    asked: dict[str, Any] = {}
    answered: set[str] = set()
    deadline = time.monotonic() + seconds
    while True:
        listed = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if len(listed) == 1:
            return []  # the one that asks
        for node in listed - asked.keys():
            asked[node] = _answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node, reference in asked.items():
            if node in answered or not ray.wait([reference], timeout=0, fetch_local=False)[0]:
                continue
            try:
                ray.get(reference)
                answered.add(node)
            except ray.exceptions.RayError:
                pass  # it is gone, and off the list now or in a moment
        silent = sorted(listed - answered)
        if not silent or time.monotonic() > deadline:
            return silent
        time.sleep(0.2)


def plan_with_nodes_of_now() -> None:
    """The AutoscalingCoordinator's copy of the list of nodes is up to 20 s old; groups are planned with it."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordination

    coordinator = coordination.get_or_create_autoscaling_coordinator()
    ray.get(coordinator.get_reserved_resources.remote("edm_ray", recompute=True), timeout=30)


class KnowWhoIsLeft(UserCallback):
    """In Ray Train's controller: after workers were lost, the next group is planned with nodes that answer."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        wait_until_listed_nodes_answer()
        plan_with_nodes_of_now()


def room_for_more(ask: Ask, most: int, world_size: int, patience_s: float) -> Callable[[], bool]:
    """In a worker: says, once it has seen it twice in a row, that free resources hold one more worker of this size.

    A cluster whose free resources a larger group did not get is not tried again at once: ``patience_s`` is how long
    after the start of this group the first look is.
    """
    if world_size >= most:
        return lambda: False
    state = {"next": time.monotonic() + patience_s, "seen": 0.0}

    def look() -> bool:
        if time.monotonic() >= state["next"]:
            state["next"] = time.monotonic() + ROOM_POLL_S
            state["seen"] = state["seen"] + 1 if sum(ask.fits(node) for node in nodes_free()) > 0 else 0
        return state["seen"] >= 2

    return look


class Growth:
    """In the driver: how patient the next group is with room, after groups that ended for it."""

    def __init__(self) -> None:
        self.patience_s, self.before = ROOM_POLL_S, 0

    def after(self, world_size: int) -> None:
        """A group of so many workers ended because there was room for more."""
        grown = world_size > self.before
        self.patience_s = ROOM_POLL_S if grown else min(2 * max(self.patience_s, 30.0), 3600.0)
        self.before = world_size
