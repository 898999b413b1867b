"""Distributed training: Ray Train places the workers and restarts them, `training` does the rest.

Checkpoints are training's own (one format with and without Ray); a restarted group of workers, or the same command run
again, resumes from the newest whole one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig

from edm_ray.distributed import ray_data
from edm_ray.distributed.cluster.node_check import require_nodes
from edm_ray.distributed.cluster.preflight import preflight
from edm_ray.distributed.elastic import Growth, PlanWithLivingNodes, room_watcher
from edm_ray.distributed.group import Group
from edm_ray.distributed.group_watch import Watched, new_key, watched
from edm_ray.distributed.heart import start_in_rank
from edm_ray.distributed.metrics import tell_tick
from edm_ray.distributed.network import NodeNetwork
from edm_ray.distributed.notices import Listener, StopSign
from edm_ray.distributed.patience import Patience, patience_here
from edm_ray.distributed.ray_private import refresh_known_nodes, shorten_group_start, trainer_without_idle_process
from edm_ray.distributed.retries import fit_with_retries
from edm_ray.distributed.session import session
from edm_ray.distributed.shipping import environment
from edm_ray.errors import InputError
from edm_ray.execution import activity
from edm_ray.storage import uris
from edm_ray.storage.lease import Lease, LeaseLost, held
from edm_ray.training.device import Place
from edm_ray.training.loop import Row, Stopped, TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store
from edm_ray.training.step import Diverged

POLL_SECONDS = 1.0
LOG = "log"
"""Of a run: where Ray Train's workers look whether they share storage, and where it keeps its state meanwhile."""
Trainer = trainer_without_idle_process()
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What every worker of a group is told."""

    job: TrainingJob
    group: Group
    variables: dict[str, str]
    """Set in its environment."""
    patience_s: float = 0.0
    """For how long it does not look for room for a larger group."""
    stop_key: str = ""
    leases: tuple[Lease, ...] = ()
    """Of the run; workers look at it before they write."""
    watch: str = ""
    """Key of the signs of life."""
    stuck: Patience = Patience()  # noqa: RUF009 (frozen)
    """With ranks that do nothing."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a group of workers ended, where all of them ended alike; as it was to when nothing is set.

    Other errors are raised in the worker, and Ray Train starts the group again.
    """

    workers: int = 0
    stopped: str = ""
    """They were told to."""
    refused: str = ""
    """For a reason that starting them again would not change."""


def train_on_ray(
    job: TrainingJob,
    group: Group,
    *,
    max_failures: int,
    on_tick: Callable[[Row], None],
    variables: dict[str, str] | None = None,
    must_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int], None] = lambda images_seen, total: None,
    on_resume: Callable[[int], None] = lambda images_seen: None,
) -> None:
    """Train with a group of DDP processes; ``on_tick`` is called here, in the driver, for each new row of metrics.

    ``variables`` are set in the environment of every worker. When ``must_stop`` says so, the workers make a checkpoint
    and end, and Stopped is raised here. ``on_step(images seen, total)`` is called here about twice a second while their
    loop runs. ``on_resume`` is called for each group of workers that begins, with the images seen by the checkpoint
    that it resumed from. ``max_failures``: how often the workers may fail without a new one.
    Raises InputError for what the cluster cannot hold, nodes that cannot work, and a loss that stays not finite.

    An elastic group starts with what the cluster has, and continues with fewer workers when a node is lost, from the
    newest checkpoint. When there is room for more workers, they make a checkpoint and end, and a larger group resumes
    from there (`elastic`). The images and their order stay the same.
    """
    if group.elastic:
        shorten_group_start()
    with session():
        activity.stage("checking that every node can do the work")
        _require_cluster(job, group)
        variables = environment().get("env_vars", {}) | (variables or {})
        task = WorkerTask(
            job=job, group=group, variables=variables, leases=held(), watch=new_key(), stuck=patience_here()
        )
        watching = Watched(key=task.watch, ranks=group.most, patience=task.stuck, on_resume=on_resume)

        def told(row: Row) -> None:
            tell_tick(row, job.run_uri)
            on_tick(row)

        with (
            _metrics_followed(job.run_uri, told),
            _ray_train_s_files_removed(job.run_uri),
            watched(watching),
        ):
            ended = _fit_groups(task, max_failures, must_stop, on_step)
        if ended.stopped:
            raise Stopped(ended.stopped)
        if ended.refused:
            raise InputError(ended.refused)


@contextlib.contextmanager
def _ray_train_s_files_removed(run_uri: str) -> Iterator[None]:
    """Before, where a killed command has left them, and after."""
    uris.delete_directory(uris.join(run_uri, LOG))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, InputError):
            uris.delete_directory(uris.join(run_uri, LOG))


def _require_cluster(job: TrainingJob, group: Group) -> None:
    request = group.request()
    preflight(request)
    require_nodes(request, job.run_uri, reads=(job.dataset.uri,))
    if _streams(job):
        ray_data.require_room(group.least, request.cpus)


def _streams(job: TrainingJob) -> bool:
    return job.config.reader == "ray-data"


def _fit_groups(
    task: WorkerTask, max_failures: int, must_stop: Callable[[], bool], on_step: Callable[[int, int], None]
) -> Ended:
    """One group after another, each larger or smaller than the last, until one ends for good."""
    growth = Growth()
    while True:
        with StopSign(must_stop, on_step) as sign:
            this = replace(task, stop_key=sign.key, patience_s=growth.patience_s)
            store = checkpoint_store(task.job.run_uri)
            ended = fit_with_retries(partial(_fit_group, this, max_failures), store, max_failures)
        if not ended.stopped or must_stop():
            return ended
        growth.after(ended.workers)
        logger.warning("%s: room for more than %d workers", ended.stopped, ended.workers)
        refresh_known_nodes()


def _fit_group(task: WorkerTask, max_failures: int) -> Ended:
    job, count = task.job, task.group.most
    activity.stage(f"starting {count} training worker{'s' * (count > 1)}, about 15 s")
    shards = {ray_data.NAME: ray_data.shards_to_come(job.dataset, job.config, job.run_uri)} if _streams(job) else None
    trainer = Trainer(
        _worker,
        train_loop_config={"task": task},
        torch_config=NodeNetwork(timeout_s=round(task.stuck.collective_s), watch=task.watch),
        datasets=shards,
        scaling_config=task.group.scaling(),
        run_config=RunConfig(
            # Never the same twice, and gone at the end: nothing that Ray Train keeps of itself is read back.
            name=f"ray_train-{secrets.token_hex(4)}",
            storage_path=uris.join(job.run_uri, LOG),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[PlanWithLivingNodes()],
        ),
    )
    return trainer.fit().return_value or Ended()


def _worker(told: dict[str, WorkerTask]) -> Ended:
    """What each Ray Train worker runs."""
    task, context = told["task"], ray.train.get_context()
    job = task.job
    logging.basicConfig(level=logging.INFO)
    os.environ.update(task.variables)
    for lease in task.leases:
        lease.guard_process()
    device = str(ray.train.torch.get_device())
    place = Place(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    listener = Listener(task.stop_key, place.rank, room_watcher(task.group, place.world_size, task.patience_s))
    pulse = start_in_rank(task.watch).pulse
    pulse.on_step = listener.on_step
    try:
        train(
            job,
            place,
            on_tick=_report,
            ask=listener.ask,
            served=partial(ray_data.open_in_worker, job.dataset, job.config) if _streams(job) else None,
            pulse=pulse,
        )
    except Stopped as stopped:
        return Ended(workers=place.world_size, stopped=str(stopped))
    except (Diverged, LeaseLost) as error:
        return Ended(workers=place.world_size, refused=str(error))
    return Ended()


def _report(metrics: Row) -> None:
    ray.train.report({key: metrics[key] for key in ("nimg", "loss", "grad_norm", "lr")})


@contextlib.contextmanager
def _metrics_followed(run_uri: str, on_tick: Callable[[Row], None]) -> Iterator[None]:
    """Meanwhile, new rows of the run's metrics are handed on as rank 0 writes them, wherever it runs."""
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(run_uri, on_tick, stop), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def _follow(run_uri: str, on_tick: Callable[[Row], None], stop: threading.Event) -> None:
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
