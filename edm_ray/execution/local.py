"""The executor of this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edm_ray.errors import require
from edm_ray.execution.executor import Item, Recipe, Worker, is_made


@dataclass(frozen=True)
class Local:
    """This process does the work, one item after the other."""

    device: str = "cpu"
    """cpu, cuda, or one GPU of several, as in cuda:1."""

    def __post_init__(self) -> None:
        require(self.device.partition(":")[0] in ("cpu", "cuda"), "device", self.device, "cpu or cuda")

    def __str__(self) -> str:
        return f"{self.device}, in this process"

    @property
    def size(self) -> int:
        return 1

    @contextmanager
    def session(self, *recipes: Recipe) -> Iterator[None]:
        yield

    @contextmanager
    def open(self, *recipes: Recipe) -> Iterator[tuple[LocalMaker, ...]]:
        yield tuple(LocalMaker(recipe, self.device) for recipe in recipes)


class LocalMaker:
    """One worker, set up when the first item is missing."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, "cpu" if recipe.needs.light else device
        self.worker: Worker | None = None

    def make(self, items: Sequence[Item]) -> Iterator[int]:
        for number, item in enumerate(items):
            if not is_made(self.recipe, item):
                if self.worker is None:
                    self.worker = self.recipe.setup(self.device)
                self.worker.make(item)
            yield number
