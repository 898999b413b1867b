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
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.distributed import ray_data
from edm_ray.distributed.cluster.node_check import require_nodes
from edm_ray.distributed.cluster.preflight import Ask, preflight
from edm_ray.distributed.elastic import NEVER_S, Growth, KnowWhoIsLeft, plan_with_nodes_of_now, room_for_more
from edm_ray.distributed.network import NodeNetwork
from edm_ray.distributed.notices import listener, stop_sign
from edm_ray.distributed.retries import outlive
from edm_ray.distributed.session import session
from edm_ray.distributed.shipping import environment
from edm_ray.distributed.trainer import Trainer
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.training.device import Place
from edm_ray.training.loop import Row, Stopped, TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store
from edm_ray.training.step import Diverged

POLL_SECONDS = 1.0
# A group that waits for a node that is gone gives up after this long (Ray's default: 60 s); a start takes 20 to 30 s.
_ELASTIC_DEFAULTS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "40"}


logger = logging.getLogger(__name__)


def _worker(job: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs. Returns {"stopped"|"refused": why, "workers": how many} where all of them ended
    alike, because they were told to or for a reason that starting them again would not change; other errors are raised,
    and Ray Train starts the group again."""
    context = ray.train.get_context()
    logging.basicConfig(level=logging.INFO)
    os.environ.update(job["variables"])
    device = str(ray.train.torch.get_device())
    place = Place(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    keep_to_share(device, job["ask"].gpus)
    room = room_for_more(job["ask"], job["most"], place.world_size, job["patience_s"])
    try:
        train(
            TrainingJob(**{name: job[name] for name in ("config", "dataset", "run_uri", "about", "snapshot_kimg")}),
            place,
            on_tick=_report,
            ask=listener(job["stop_key"], place.rank, room),
            served=partial(ray_data.open_in_worker, job["dataset"], job["config"]) if _streams(job["config"]) else None,
        )
    except Stopped as stopped:
        return {"stopped": str(stopped), "workers": place.world_size}
    except Diverged as error:
        return {"refused": str(error), "workers": place.world_size}
    return {}


def keep_to_share(device: str, gpus: float) -> None:
    """In a worker: of its card's memory PyTorch takes no more than Ray gave it of the card. The rest is another's."""
    if device.startswith("cuda") and gpus < 1.0:
        torch.cuda.set_per_process_memory_fraction(gpus, device)


def ask_of(workers: int, device: str, threads: int, gpus: float) -> Ask:
    """What so many workers take of the cluster."""
    if device == "cuda":
        return Ask(what="training", count=workers, gpus=gpus)
    return Ask(what="training", count=workers, cpus=float(threads))


def scaling_of(workers: tuple[int, int], ask: Ask) -> ScalingConfig:
    """The same, as Ray Train is told."""
    least, most = workers
    return ScalingConfig(
        num_workers=most if least == most else workers,
        elastic_resize_monitor_interval_s=NEVER_S,
        use_gpu=ask.gpus > 0,
        resources_per_worker={"GPU": ask.gpus} if ask.gpus else {"CPU": int(ask.cpus)},
    )


def _streams(config: TrainingConfig) -> bool:
    return config.reader == "ray-data"


def _report(metrics: Row) -> None:
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
    on_tick: Callable[[Row], None],
    gpus: float = 1.0,
    variables: dict[str, str] | None = None,
    snapshot_kimg: float | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train with (least, most) DDP processes; ``on_tick`` is called here, in the driver, for each new row of metrics.
    ``gpus``: with cuda, how much of one each worker takes; above 0.5, so that each has a card of its own.
    ``variables`` are set in the environment of every worker. When ``must_stop`` says so, the workers make a checkpoint
    and end, and Stopped is raised here. ``max_failures``: how often the workers may fail without a new checkpoint.

    With least < most, Ray Train starts with what the cluster has and goes on with fewer when a node is lost, from the
    newest checkpoint; when there is room for more workers, they make a checkpoint and end, and a larger group goes on
    from there (`elastic`). The images and their order stay the same.
    """
    least, most = workers
    if least < most:
        for name, value in _ELASTIC_DEFAULTS.items():
            os.environ.setdefault(name, value)
    with session():
        ask = ask_of(least, device, config.threads, gpus)
        preflight(ask)
        require_nodes(ask, run_uri, reads=(dataset.uri,))
        if _streams(config):
            ray_data.require_room(least, ask.cpus)
        job = {
            "config": config,
            "dataset": dataset,
            "run_uri": run_uri,
            "about": about,
            "variables": environment().get("env_vars", {}) | (variables or {}),
            "snapshot_kimg": snapshot_kimg,
            "ask": ask,
            "most": most,
        }

        def fit() -> Any:
            streamed = {ray_data.NAME: ray_data.shards_to_come(dataset, config, run_uri)} if _streams(config) else None
            trainer = Trainer(
                _worker,
                train_loop_config=job,
                torch_config=NodeNetwork(),
                datasets=streamed,
                scaling_config=scaling_of(workers, ask),
                run_config=RunConfig(
                    name="ray_train",
                    storage_path=uris.join(run_uri, "log"),
                    failure_config=FailureConfig(max_failures=max_failures),
                    callbacks=[KnowWhoIsLeft()],
                ),
            )
            return trainer.fit()

        stop = threading.Event()
        follower = threading.Thread(target=_follow, args=(run_uri, on_tick, stop), daemon=True)
        follower.start()
        growth, ended = Growth(), None
        try:
            while ended is None or ("stopped" in ended and not must_stop()):
                if ended is not None:
                    growth.after(ended["workers"])
                    logger.warning("%s: room for more than %d workers", ended["stopped"], ended["workers"])
                    plan_with_nodes_of_now()
                job["patience_s"] = growth.patience_s
                with stop_sign(must_stop) as job["stop_key"]:
                    ended = outlive(fit, checkpoint_store(run_uri), max_failures).return_value or {}
        finally:
            stop.set()
            follower.join()
        if "stopped" in ended:
            raise Stopped(ended["stopped"])
        if "refused" in ended:
            raise InputError(ended["refused"])


def _follow(run_uri: str, on_tick: Callable[[Row], None], stop: threading.Event) -> None:
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
