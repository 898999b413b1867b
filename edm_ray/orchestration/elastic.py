"""What Ray Train's elasticity leaves out: not planning with a node that is gone but still listed.

When a node is lost, Ray Train plans the next group of workers at once, with the nodes that Ray lists. A lost node stays on
that list until its health checks have failed (seconds to half a minute), and Ray's AutoscalingCoordinator copies the list
every 20 s only; a group planned with it waits out its start timeout before Ray plans again (measured in docs/training.md).
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WAIT_S = 60.0
"""At most so long for nodes that Ray lists to answer; Ray's defaults take a dead one off after about 25 s."""


@ray.remote(num_cpus=0, max_retries=0)
def _answer() -> None:
    """Runs where a node lives."""


def wait_until_listed_nodes_answer(seconds: float = WAIT_S) -> list[str]:
    """Until every node that Ray lists has run a task, or has been taken off the list; returns those that did neither."""
    asked: dict[str, Any] = {}
    answered: set[str] = set()
    deadline = time.monotonic() + seconds
    while True:
        listed = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
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


class KnowWhoIsLeft(UserCallback):
    """In Ray Train's controller: after workers were lost, the next group is planned with nodes that answer."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordination

        wait_until_listed_nodes_answer()
        # Its copy of the list is up to 20 s old.
        coordinator = coordination.get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("edm_ray", recompute=True), timeout=10)
