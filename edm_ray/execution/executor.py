"""What an executor is: it makes the artefacts of a recipe that are missing, with set-up once a worker.

A recipe is a small picklable object: what it takes to make one kind of artefact (a model and extractors, a data set),
and where they are stored. An item is a tuple of artefacts that one piece of work makes together: the features that
several extractors take of the same images. `Local` follows recipes in this process, `edm_ray.distributed.executor.Ray`
on a cluster; the artefacts have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from edm_ray.storage.artifacts import Artifact

Item = tuple[Any, ...]
"""Artefacts of one kind that are made together."""
SAMPLER_CPUS = 0.9
"""Samplers leave a little of each CPU for trials, dispatchers and FID workers, which mostly wait."""
OnProgress = Callable[[int, int], None]
"""Called with (done, total) as work ends."""


def no_progress(done: int, total: int) -> None:
    """For callers who do not want to know."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a worker of a recipe takes."""

    what: str
    """What it is for, as messages say it: "sampling"."""
    cpus: float = 1.0
    """On the CPU; on a GPU it takes a card, and no CPU."""
    memory: int = 1 << 29
    """Bytes, about. Compared with the nodes; not reserved."""
    light: bool = False
    """Works now and then, on the CPU whatever the executor's device: it runs beside the others."""
    overlap: bool = False
    """On a GPU a worker may begin an item while it ends the one before."""
    most: int | None = None
    """No more workers are of use; None: any number."""
    reads: tuple[str, ...] = ()
    """Places that every node must see, beside the store."""


class Worker(Protocol):
    """A recipe that has been set up: networks loaded."""

    def make(self, item: Item) -> None:
        """Write the artefacts of the item that are missing. Raises InputError for what cannot be made at all."""


class Recipe(Protocol):
    """How to make one kind of artefact."""

    @property
    def store(self) -> str:
        """Where they are kept: a place that every worker sees."""

    @property
    def needs(self) -> Needs: ...

    def setup(self, device: str) -> Worker:
        """Once a worker."""

    def is_stored(self, artifact: Artifact) -> bool:
        """Whether it is there and whole, as `storage.artifacts.is_stored` says it."""


class Maker(Protocol):
    """A recipe under way: as long as it is open, its workers stay set up."""

    def make(self, items: Sequence[Item]) -> Iterator[int]:
        """Have all items in the store; yields their numbers as they are done, in any order.

        Wrong input ends it at once (InputError). An item that cannot be made for other reasons is named in an
        InputError at the end, after the others are made.
        """


class Executor(Protocol):
    """Where work is done."""

    @property
    def device(self) -> str:
        """cpu or cuda."""

    @property
    def size(self) -> int:
        """Workers, at most."""

    def session(self, *recipes: Recipe) -> AbstractContextManager[None]:
        """Held around several `open`, so that what they share is started once. Raises InputError, before that, when
        this machine can be seen to be too small for the recipes."""

    def open(self, *recipes: Recipe) -> AbstractContextManager[tuple[Maker, ...]]:
        """A maker for each recipe. Raises InputError at once for what can never run there."""


def is_made(recipe: Recipe, item: Item) -> bool:
    return all(recipe.is_stored(artifact) for artifact in item)


def work_of(item: Item) -> float:
    """How much there is to do, where its artefacts say it (``work``, in units of their kind), else 1: only items of one
    recipe are compared."""
    return max(1.0, sum(float(getattr(artifact, "work", 1.0)) for artifact in item))


def make_all(maker: Maker, items: Sequence[Item], on_progress: OnProgress = no_progress) -> None:
    """Return when all of them are in the store; raises as `Maker.make` does."""
    for count, _ in enumerate(maker.make(items), 1):
        on_progress(count, len(items))
