"""Distributed training: Ray Train places the workers and restarts them, the engine does the rest.

Checkpoints are the engine's own (one format with and without Ray); a restarted group of workers, or the same command
run again, resumes from the newest whole one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from edm_ray.config.schema import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.errors import InputError
from edm_ray.orchestration import ray_data
from edm_ray.orchestration.elastic import KnowWhoIsLeft
from edm_ray.orchestration.network import NodeNetwork
from edm_ray.orchestration.nodes import require_nodes
from edm_ray.orchestration.preflight import Ask, preflight
from edm_ray.orchestration.session import session
from edm_ray.orchestration.shipping import environment
from edm_ray.orchestration.trainer import Trainer
from edm_ray.storage import uris
from edm_ray.training.engine import Metrics, Place, train
from edm_ray.training.run import read_metrics

POLL_SECONDS = 1.0
# A group that waits for a node that is gone gives up after this long (Ray's default: 60 s); a start takes 20 to 30 s.
_ELASTIC_DEFAULTS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "40"}


def _worker(job: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    context = ray.train.get_context()
    logging.basicConfig(level=logging.INFO)
    os.environ.update(job["variables"])
    device = str(ray.train.torch.get_device())
    place = Place(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    train(
        job["config"],
        job["dataset"],
        job["run_uri"],
        place,
        job["about"],
        on_tick=_report,
        must_save=_will_be_taken_away,
        snapshot_kimg=job["snapshot_kimg"],
        served=partial(ray_data.open_in_worker, job["dataset"], job["config"]) if _streams(job["config"]) else None,
    )


def _streams(config: TrainingConfig) -> bool:
    return config.reader == "ray-data"


def _will_be_taken_away() -> bool:
    """Whether Ray has been told that a node of these workers is about to go (spot notice, drain)."""
    return ray.train.get_preemption_info() is not None


def _report(metrics: Metrics) -> None:
    ray.train.report({key: metrics[key] for key in ("nimg", "loss", "grad_norm", "lr")})


def train_on_ray(
    config: TrainingConfig,
    dataset: DataSet,
    run_uri: str,
    about: dict[str, Any],
    *,
    workers: tuple[int, int],
    device: str,
    max_failures: int,
    on_tick: Callable[[Metrics], None],
    variables: dict[str, str] | None = None,
    snapshot_kimg: float | None = None,
) -> None:
    """Train with (least, most) DDP processes; ``on_tick`` is called here, in the driver, for each new row of metrics.
    ``variables`` are set in the environment of every worker.

    With least < most, Ray Train starts with what the cluster has, goes on with fewer when a node is lost and takes more
    when there are more; each change goes on from the newest checkpoint, with the same images in the same order.
    """
    least, most = workers
    if least < most:
        for name, value in _ELASTIC_DEFAULTS.items():
            os.environ.setdefault(name, value)
    with session():
        use_gpu = device == "cuda"
        ask = Ask(what="training", count=least, cpus=0.0 if use_gpu else float(config.threads), gpus=float(use_gpu))
        preflight(ask)
        require_nodes(ask, run_uri, reads=(dataset.uri,))
        if _streams(config):
            ray_data.require_room(least, ask.cpus)
        trainer = Trainer(
            _worker,
            train_loop_config={
                "config": config,
                "dataset": dataset,
                "run_uri": run_uri,
                "about": about,
                "variables": environment().get("env_vars", {}) | (variables or {}),
                "snapshot_kimg": snapshot_kimg,
            },
            torch_config=NodeNetwork(),
            datasets={ray_data.NAME: ray_data.shards_to_come(dataset, config, run_uri)} if _streams(config) else None,
            scaling_config=ScalingConfig(
                num_workers=most if least == most else workers,
                use_gpu=use_gpu,
                resources_per_worker=None if use_gpu else {"CPU": config.threads},
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=uris.join(run_uri, "log"),
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=[KnowWhoIsLeft()],
            ),
        )
        stop = threading.Event()
        follower = threading.Thread(target=_follow, args=(run_uri, on_tick, stop), daemon=True)
        follower.start()
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
        finally:
            stop.set()
            follower.join()


def _cause(error: Exception) -> Exception:
    """The workers' own message when it is one for people (a wrong input), else Ray's error as it is."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, InputError):
            return InputError(str(cause))
        if isinstance(cause, FloatingPointError):
            return InputError(str(cause))
    return error


def _follow(run_uri: str, on_tick: Callable[[Metrics], None], stop: threading.Event) -> None:
    """Hand on new rows of the run's metrics as rank 0 writes them, wherever it runs."""
    rows = read_metrics(run_uri)
    seen = rows[-1]["nimg"] if rows else -1
    while True:
        ended = stop.wait(POLL_SECONDS)
        for row in read_metrics(run_uri):
            if row["nimg"] > seen:
                seen = row["nimg"]
                on_tick(row)
        if ended:
            return
