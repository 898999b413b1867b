"""A worker of a pool: one actor that follows one recipe."""

from __future__ import annotations

from edm_ray.execution.executor import Item, Recipe


class Worker:
    """It may be given two items at once, where the recipe overlaps them."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device

    def load(self) -> None:
        """Not in the constructor: what is raised here reaches the dispatcher as it is."""
        self.worker = self.recipe.setup(self.device)
        del self.recipe

    def make(self, item: Item) -> None:
        self.worker.make(item)
