"""Several workers of one training joined by torch.distributed, without Ray: processes forked from one that has imported
torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.training.engine import Diverged, Place, Stopped, train
from edm_ray.training.run import claim_run
from edm_ray.training.signals import Wish, nothing
from tests.training.faults import FORKS

Ask = Callable[[], Wish]
STOPPED, DIVERGED = 3, 4
"""Exit codes of workers that ended so."""


def train_in_process(data: str, uri: str, settings: list[str], place: Place, ask: Ask = nothing) -> None:
    dataset = open_dataset(data)
    config = configure(tiny(dataset.shape), None, settings)
    if place.rank == 0:
        claim_run(uri, config, dataset)
    train(config, dataset, uri, place, {}, ask=ask)


def _worker(place: Place, rendezvous: str, data: str, uri: str, settings: list[str], begin: Callable[[int], Ask]):
    torch.set_num_threads(1)
    ask = begin(place.rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=place.rank, world_size=place.world_size)
    try:
        train_in_process(data, uri, settings, place, ask)
    except Stopped:
        raise SystemExit(STOPPED) from None
    except Diverged:
        raise SystemExit(DIVERGED) from None
    dist.destroy_process_group()


def undisturbed(rank: int) -> Ask:
    return nothing


def run_together(
    world_size: int, data: str, uri: str, settings: list[str], begin: Callable[[int], Ask] = undisturbed
) -> list[int | None]:
    """Exit codes by rank. ``begin`` is called in each worker, with its rank, and gives what it asks between steps; it
    must be a function of a module, or `functools.partial` of one."""
    rendezvous = Path(f"{uri}.rendezvous")
    rendezvous.unlink(missing_ok=True)
    places = [Place(rank=rank, world_size=world_size) for rank in range(world_size)]
    workers = [
        FORKS.Process(target=_worker, args=(place, str(rendezvous), data, uri, settings, begin)) for place in places
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]
