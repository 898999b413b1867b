"""Runs that are killed at a named point: what the tests of faults share.

Each process is forked from a server that has imported what training needs, so that starting one is cheap.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch.distributed as dist

from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.models import open_model
from edm_ray.storage import uris
from edm_ray.training.device import Place
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store, claim_run, model_uri
from edm_ray.training.step import TrainingStep

# 500 images in batches of 24: the first epoch ends in step 21. A checkpoint every 4 steps, 30 steps.
SETTINGS = ["total_kimg=0.72", "tick_kimg=0.048", "checkpoint_kimg=0.096", "denoiser.network.dropout=0.1"]
ALONE = Place()
CLOCKS = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.faults", "edm_ray.data.importers.digits", "torch._dynamo"])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_call(owner: Any, name: str, when: Callable[..., bool], number: int) -> None:
    """Die just before the ``number``-th call of owner.name for which ``when(*args)`` holds."""
    original, calls = getattr(owner, name), itertools.count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if when(*args) and next(calls) == number:
            _die()
        return original(*args, **kwargs)

    setattr(owner, name, call)


def _of_checkpoint(path: str, *_: Any) -> bool:
    return "nimg-" in path


POINTS: dict[str, tuple[Any, str, Callable[..., bool], int]] = {
    "before the first step": (TrainingStep, "take", lambda *_: True, 1),
    "in the middle of an epoch": (TrainingStep, "take", lambda *_: True, 14),
    "at the edge of an epoch": (TrainingStep, "take", lambda *_: True, 21),
    "just after the edge": (TrainingStep, "take", lambda *_: True, 22),
    "while the first checkpoint is written": (uris, "write_bytes", _of_checkpoint, 2),
    "before a checkpoint's manifest": (uris, "create_bytes", _of_checkpoint, 3),
    "while an old checkpoint is deleted": (uris, "delete_directory", _of_checkpoint, 1),
    "while metrics are written": (uris, "write_bytes", lambda path, *_: path.endswith("metrics.jsonl"), 6),
    "while the model is written": (uris, "write_bytes", lambda path, *_: "/model/" in path, 1),
}


def train_tiny(data: str, uri: str, point: str | None = None, place: Place = ALONE) -> None:
    """A run of 30 steps, in this process, which dies at ``point`` where one is named."""
    if point is not None:
        _at_call(*POINTS[point])
    dataset = open_dataset(data)
    config = configure(tiny(dataset.shape), None, SETTINGS)
    if place.rank == 0:
        claim_run(uri, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=uri), place)


def run_tiny(data: str, uri: str, point: str | None = None) -> int:
    """`train_tiny` in a process of its own; its exit code."""
    process = FORKS.Process(target=train_tiny, args=(data, uri, point))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _work(place: Place, rendezvous: str, data: str, uri: str, point: str | None) -> None:
    """One of several processes that torch.distributed joins."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=place.rank, world_size=place.world_size)
    train_tiny(data, uri, point, place)
    dist.destroy_process_group()


def start_workers(
    data: str, uri: str, rendezvous: Path, victim: int | None = None, point: str | None = None, context: Any = FORKS
) -> list[Any]:
    """`train_tiny` in two processes joined by torch.distributed, without Ray; worker ``victim`` dies at ``point``."""
    rendezvous.unlink(missing_ok=True)
    workers = []
    for rank in range(2):
        own = point if rank == victim else None
        place = Place(rank=rank, world_size=2)
        workers.append(context.Process(target=_work, args=(place, str(rendezvous), data, uri, own)))
        workers[-1].start()
    return workers


def end_workers(workers: list[Any], kill_all: bool = False) -> list[int]:
    """Exit codes; with ``kill_all``, the first to end takes the others with it."""
    if kill_all:
        multiprocessing.connection.wait([worker.sentinel for worker in workers], 120)
        for worker in workers:
            worker.kill()
    for worker in workers:
        worker.join(120)
    assert all(worker.exitcode is not None for worker in workers), "a worker hangs"
    return [worker.exitcode for worker in workers]


def result_of(uri: str) -> dict[str, Any]:
    """What must be equal bit for bit: the model, every tensor of the last checkpoint (parameters, averages, optimizer),
    metrics without clocks, and which checkpoints there are."""
    store = checkpoint_store(uri)
    last = store.latest()
    assert last is not None and {"model", "ema", "optimizer"} <= last.tensors.keys()
    return {
        "model": open_model(model_uri(uri)).weights,
        "state": {stem: safetensors.torch.save(tensors) for stem, tensors in last.tensors.items()},
        "metrics": [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_metrics(uri)],
        "checkpoints": store.committed(),
    }
