"""A worker of a pool: one actor that follows one recipe."""

from __future__ import annotations

from edm_ray.execution.executor import Item, Recipe
from edm_ray.storage.lease import Lease


class Worker:
    """It may be given two items at once, where the recipe overlaps them."""

    def __init__(self, recipe: Recipe, device: str, leases: tuple[Lease, ...] = ()) -> None:
        self.recipe, self.device = recipe, device
        for lease in leases:
            lease.guard_process()

    def load(self) -> None:
        """Not in the constructor: what is raised here reaches the dispatcher as it is."""
        self.worker = self.recipe.setup(self.device)
        del self.recipe

    def make(self, item: Item) -> None:
        self.worker.make(item)
