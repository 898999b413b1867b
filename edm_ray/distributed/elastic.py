"""What Ray Train's elasticity leaves out: planning without a node that is gone, and growing without losing a step.

When a node is lost, Ray Train plans the next group of workers at once, with the nodes that Ray lists. A lost node stays
on that list until its health checks have failed (seconds to half a minute), and a group planned with it waits out its
start timeout before Ray plans again. So the controller first asks every listed node for an answer.

When a node comes, Ray Train kills the group that runs and starts a larger one from the last checkpoint. Here workers
see the room themselves, make a checkpoint after the step under way and end; the driver starts the larger group.
docs/training.md has what was measured of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.train import UserCallback

from edm_ray.distributed.cluster.nodes import wait_until_listed_nodes_answer
from edm_ray.distributed.cluster.preflight import nodes_free
from edm_ray.distributed.group import Group
from edm_ray.distributed.ray_private import refresh_known_nodes

ROOM_POLL_S = 5.0
PATIENCE_S, MOST_PATIENCE_S = 30.0, 3600.0
"""After a group that ended for room and did not grow: the wait doubles, from one to the other."""


class PlanWithLivingNodes(UserCallback):
    """In Ray Train's controller: after workers were lost, the next group is planned with nodes that answer."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        wait_until_listed_nodes_answer()
        refresh_known_nodes()


def room_watcher(group: Group, world_size: int, patience_s: float) -> Callable[[], bool]:
    """In a worker: says, once it has seen it twice in a row, that free resources hold one more worker of this size.

    A cluster whose free resources a larger group did not get is not tried again at once: ``patience_s`` is how long
    after the start of this group the first look is.
    """
    if world_size >= group.most:
        return lambda: False
    request = group.request()
    next_look, seen = time.monotonic() + patience_s, 0

    def look() -> bool:
        nonlocal next_look, seen
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + ROOM_POLL_S
            seen = seen + 1 if any(request.fits(node) for node in nodes_free()) else 0
        return seen >= 2

    return look


class Growth:
    """In the driver: how long the next group waits before it looks for room, after groups that ended for it."""

    def __init__(self) -> None:
        self.patience_s, self.before = ROOM_POLL_S, 0

    def after(self, world_size: int) -> None:
        """A group of so many workers ended because there was room for more."""
        grown = world_size > self.before
        self.patience_s = ROOM_POLL_S if grown else min(2 * max(self.patience_s, PATIENCE_S), MOST_PATIENCE_S)
        self.before = world_size
