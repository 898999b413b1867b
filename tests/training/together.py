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
from edm_ray.training.device import Place
from edm_ray.training.loop import Stopped, TrainingJob, train
from edm_ray.training.run import claim_run
from edm_ray.training.signals import Signal, no_signal
from edm_ray.training.step import Diverged
from tests.training.faults import FORKS

WorkerRequest = Callable[[], Signal]
STOPPED, DIVERGED = 3, 4
"""Exit codes of workers that ended so."""


def train_in_process(
    data: str,
    uri: str,
    settings: list[str],
    place: Place,
    ask: WorkerRequest = no_signal,
    snapshot_kimg: float | None = None,
) -> None:
    dataset = open_dataset(data)
    config = configure(tiny(dataset.shape), None, settings)
    if place.rank == 0:
        claim_run(uri, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=uri, snapshot_kimg=snapshot_kimg), place, ask=ask)


def _worker(
    place: Place,
    rendezvous: str,
    begin: Callable[[int], WorkerRequest],
    run: tuple[str, str, list[str]],
    snapshot_kimg: float | None,
) -> None:
    torch.set_num_threads(1)
    ask = begin(place.rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=place.rank, world_size=place.world_size)
    try:
        train_in_process(*run, place, ask, snapshot_kimg)
    except Stopped:
        raise SystemExit(STOPPED) from None
    except Diverged:
        raise SystemExit(DIVERGED) from None
    dist.destroy_process_group()


def undisturbed(rank: int) -> WorkerRequest:
    return no_signal


def run_together(
    world_size: int,
    data: str,
    uri: str,
    settings: list[str],
    begin: Callable[[int], WorkerRequest] = undisturbed,
    snapshot_kimg: float | None = None,
) -> list[int | None]:
    """Exit codes by rank. ``begin`` is called in each worker, with its rank, and gives what it asks between steps; it
    must be a function of a module, or `functools.partial` of one."""
    rendezvous = Path(f"{uri}.rendezvous")
    rendezvous.unlink(missing_ok=True)
    places = [Place(rank=rank, world_size=world_size) for rank in range(world_size)]
    run = (data, uri, settings)
    workers = [
        FORKS.Process(target=_worker, args=(place, str(rendezvous), begin, run, snapshot_kimg)) for place in places
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]
