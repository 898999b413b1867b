"""The executor of a Ray cluster. Nothing of Ray is imported until something is to be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from edm_ray.errors import InputError, require
from edm_ray.execution import activity, stopping
from edm_ray.execution.executor import Recipe


@dataclass(frozen=True)
class Ray:
    """Workers of a Ray cluster do the work: of the cluster at ``address``, else of the one that RAY_ADDRESS names or
    this job runs in, else of a Ray that is started on this machine."""

    workers: int = 1
    """Number of workers, at most."""
    device: str = "cpu"
    """cpu: each worker takes one CPU. cuda: each takes one GPU, or a share of one (``actors_per_gpu``)."""
    address: str | None = None
    """HOST:PORT of a cluster's head."""
    least: int | None = None
    """Start with this many workers, and take more when the cluster grows. None: the cluster must hold all of them."""
    actors_per_gpu: int = 1
    """Sampling workers that share one GPU."""

    def __post_init__(self) -> None:
        require(self.device in ("cpu", "cuda"), "device", self.device, "cpu or cuda")
        if self.workers < 1 or self.actors_per_gpu < 1 or not 1 <= (self.least or 1) <= self.workers:
            raise InputError(
                f"workers {self.least or self.workers} to {self.workers}, {self.actors_per_gpu} a GPU: give 1 or more, "
                "least not above most"
            )

    def __str__(self) -> str:
        count = f"{self.workers}" if self.least in (None, self.workers) else f"{self.least} to {self.workers}"
        return f"{self.device}, by {count} worker{'s' * (self.workers > 1)} of Ray"

    @property
    def size(self) -> int:
        return self.workers

    @contextmanager
    def session(self, *recipes: Recipe) -> Iterator[None]:
        from edm_ray.distributed.pool import check_here
        from edm_ray.distributed.session import session

        if self.address is None:
            check_here(self, recipes)
        with session(self.address):
            yield

    @contextmanager
    def open(self, *recipes: Recipe) -> Iterator[tuple[Any, ...]]:
        """A `Pool` for each recipe, all of them checked before the first starts."""
        from edm_ray.distributed.pool import check, start_pools

        with self.session(*recipes), ExitStack() as ends:
            check(self, recipes)
            pools = start_pools(self, recipes)
            ends.callback(_stop, pools[0])
            activity.stage(f"starting {self.workers} worker{'s' * (self.workers > 1)}, about 15 s")
            yield pools


def _stop(pool: Any) -> None:
    """A command that was asked to end takes its actors with it: killed before, those who wait for them complain."""
    if stopping.is_command() and stopping.asked():
        pool.listener.leave()
    else:
        pool.stop()
