"""The training loop. It runs in a plain process or as one of several that torch.distributed has joined."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from edm_ray.config.identity import identity, identity_fields
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import rank_positions, shares
from edm_ray.data.reader import Served, open_reader
from edm_ray.diffusion.preconditioning import Preconditioned
from edm_ray.errors import InputError, IntegrityError
from edm_ray.models import save_model
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.storage.documents import shortened_error
from edm_ray.storage.outlive import outlived
from edm_ray.training.checkpoint_interval import Pace
from edm_ray.training.checkpoints import Saver, agreed_checkpoint
from edm_ray.training.device import Place, cpu_threads
from edm_ray.training.metrics import MetricsLog
from edm_ray.training.pulse import Pulse
from edm_ray.training.run import checkpoint_store, model_uri, refuse_mirrored_latents
from edm_ray.training.schedule import Schedule
from edm_ray.training.signals import Signal, Signals, no_signal
from edm_ray.training.skipped_shards import SkippedLog
from edm_ray.training.state import TrainingState
from edm_ray.training.step import TrainingStep

Row = dict[str, Any]
"""Of metrics.jsonl."""


class Stopped(Exception):
    """Training was asked to end early and its state is saved; the same command resumes."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is trained, on what, and where it is kept."""

    config: TrainingConfig
    dataset: DataSet
    run_uri: str
    about: Mapping[str, Any] = field(default_factory=dict)
    """Goes into the model directory."""
    network: torch.nn.Module | None = None
    """Of the user's own, where config.denoiser.network is of kind own: network(x, noise_labels, class_labels,
    augment_labels). It is copied, with the weights it has."""
    snapshot_kimg: float | None = None
    """At the first tick at or after every so many thousand images, and at the end, the average becomes a model
    directory below RUN/snapshots and a grid is drawn from it; what cannot be made is named, and training continues."""
    mtbf_s: float = 0.0
    """Seconds between two failures of the whole group, on average: decides how often a checkpoint is made beside those
    of config.checkpoint_kimg (`checkpoint_interval.Pace`). 0: only those."""

    @property
    def identity(self) -> str:
        """Of the run: what decides its result. Every checkpoint, snapshot and row of metrics carries it."""
        return identity(identity_fields(self.config, self.dataset.hash))


def train(
    job: TrainingJob,
    place: Place = Place(),  # noqa: B008
    on_tick: Callable[[Row], None] = lambda row: None,
    ask: Callable[[], Signal] = no_signal,
    served: Callable[[], Served] | None = None,
    pulse: Pulse | None = None,
) -> None:
    """Train to the end, resuming from the newest whole checkpoint of ``job.run_uri``, and write the model directory.

    Every worker calls this; ``on_tick`` is called on every worker, equally often. A resumed run writes the same metrics
    as one that was not interrupted. ``ask`` is called after each step, on every worker, and what one of them is told
    all do after the same step: SAVE makes a checkpoint, STOP makes one and raises Stopped.
    ``served`` opens what images come from, where config.reader names another than the node's cache.
    ``pulse`` is told of the checkpoint that is resumed from, and of each step.
    """
    _require_images_for_all(job.config, place)
    refuse_mirrored_latents(job.config, job.dataset)
    images, pulse = served if served is not None else lambda: _cached(job), pulse or Pulse()
    pulse.start()
    with cpu_threads(job.config.threads), contextlib.closing(images()) as reader:
        _train(job, place, on_tick, ask, reader, pulse)


def _train(
    job: TrainingJob,
    place: Place,
    on_tick: Callable[[Row], None],
    ask: Callable[[], Signal],
    images: Served,
    pulse: Pulse,
) -> None:
    run_uri, first = job.run_uri, place.rank == 0
    store = checkpoint_store(run_uri, job.config.keep_checkpoints, job.identity)
    step = _resumed(job, place, store)
    state = step.state
    schedule = Schedule(job.config, job.snapshot_kimg, state.images_seen)
    images.follow(_shares_to_come(job.config, place, state.images_seen, schedule.total), job.config.seed)
    log = MetricsLog(run_uri, state.images_seen, job.identity) if first else None
    draw = _grid_drawer(job) if first and job.snapshot_kimg else None
    pace = Pace(job.mtbf_s if first else 0.0)
    signals = Signals(lambda: max(ask(), pace.ask()), place.world_size)
    skipped = SkippedLog(run_uri, images.skipped)
    step.watch.start(state.images_seen)
    pulse.total = schedule.total
    pulse.begin(state.images_seen)
    with contextlib.closing(Saver(run_uri, store, {**job.about, "run": job.identity}, job.dataset.codec, log)) as saver:
        while state.images_seen < schedule.total:
            step.take(images)
            due = schedule.after_step(state.images_seen, signals.after_step())
            if not due:
                pulse.step(state.images_seen)
                continue
            step.refuse_nonfinite(due.tick)
            if due.tick:
                row = {"nimg": state.images_seen, "total": schedule.total, **step.numbers()}
                if due.snapshot and draw is not None:
                    row |= draw(state.average, state.images_seen)
                row |= step.watch.read(state.images_seen)
                skipped.update()
                if log is not None:
                    log.append(row)
                on_tick(row)
            tallies = signals.gather(step.tally.sums()) if due.checkpoint else []
            if first:
                with step.watch.saving(), pulse.waiting_for_storage():
                    began = time.monotonic()
                    saver.save(due, state, tallies)
                if due.checkpoint:
                    writer = saver.writer  # its CPU time is taken from the training where that is on the CPU
                    pace.saved(time.monotonic() - began + writer.cpu_s, writer.took_s)
            if due.stop:
                signals.close()
                raise Stopped(f"{run_uri}: stopped at {state.images_seen:,} images, checkpoint written")
            pulse.step(state.images_seen)
        signals.close()
        pulse.storing = True  # to the end: the last checkpoint, then the model
    if log is not None:
        outlived(log.flush, "metrics")
        about = {**job.about, "run": job.identity, "images_seen": state.images_seen, "metrics": _metrics(log)}
        model = (model_uri(run_uri), job.config.denoiser, state.average.state_dict(), about, job.dataset.codec)
        outlived(partial(save_model, *model), "the model")
    if place.world_size > 1:
        dist.barrier()


def _resumed(job: TrainingJob, place: Place, store: CheckpointStore) -> TrainingStep:
    """Ready to take the first step after the newest whole checkpoint, or the first of all."""
    state = TrainingState(job.config, torch.device(place.device), job.network)
    step = TrainingStep(job.config, place, state, job.dataset.codec)
    if (checkpoint := agreed_checkpoint(store, place)) is not None:
        try:
            state.restore(checkpoint)
            step.tally.restore(checkpoint.tensors["tally"]["sums"], place.rank, place.world_size)
        except (KeyError, ValueError, AttributeError, RuntimeError) as error:
            reason = shortened_error(error)
            raise IntegrityError(
                f"{store.uri}: the checkpoint at {checkpoint.images_seen:,} images does not fit this run: {reason}; "
                "use --fresh to start over"
            ) from error
    if place.world_size > 1:
        step.rehearse()
    return step


def _shares_to_come(config: TrainingConfig, place: Place, images_seen: int, total: int) -> Iterable[np.ndarray]:
    where = (config.batch_size, place.rank, place.world_size, config.lanes, config.micro_batch)
    return shares(images_seen, total, *where)


def _require_images_for_all(config: TrainingConfig, place: Place) -> None:
    if len(rank_positions(0, config.batch_size, place.world_size - 1, place.world_size, config.lanes)) == 0:
        raise InputError(
            f"batch_size={config.batch_size} with lanes={config.lanes} leaves some of {place.world_size} workers "
            "without images; use fewer workers or a larger batch"
        )


def _cached(job: TrainingJob) -> Served:
    config = job.config
    if config.reader != "cache":
        raise InputError(f"reader={config.reader} trains with Ray only: leave out --no-ray, or set reader=cache")
    return open_reader(job.dataset, config.xflip, on_damage=config.on_damage, order=config.order, lanes=config.lanes)


def _grid_drawer(job: TrainingJob) -> Callable[[Preconditioned, int], Row]:
    from edm_ray.training.grid import GridDrawer  # scipy and PIL: a second that every worker would wait for

    dataset = job.dataset
    network, names = job.config.denoiser.network, dataset.class_names
    return GridDrawer(job.run_uri, network, dataset.codec, dataset.empty_classes, names).draw


def _metrics(log: MetricsLog) -> dict[str, float]:
    """What training knows of its result, for the model card: means over the last tick."""
    return {f"training {name}, last tick": log.rows[-1][name] for name in ("loss", "grad_norm") if log.rows}
