"""A worker of a pool: one actor that follows one recipe."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import ray

from edm_ray.execution.executor import Item
from edm_ray.storage.lease import Lease


class Worker:
    """It may be given two items at once, where the recipe overlaps them."""

    def __init__(self, recipe: Sequence[Any], device: str, leases: tuple[Lease, ...] = ()) -> None:
        """recipe: one reference to it. Ray does not look into it, so that the process can answer before it has what
        takes long to get and to unpickle."""
        self.recipe, self.device = recipe, device
        for lease in leases:
            lease.guard_process()

    def hello(self) -> tuple[str, int]:
        """Host and process; asked for again and again, to see that it lives."""
        return socket.gethostname(), os.getpid()

    def load(self) -> None:
        """Not in the constructor: what is raised here reaches the dispatcher as it is."""
        self.worker = ray.get(self.recipe[0]).setup(self.device)
        del self.recipe

    def make(self, item: Item) -> None:
        self.worker.make(item)
