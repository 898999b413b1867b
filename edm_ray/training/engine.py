"""The training loop. It runs in a plain process or as one of several that torch.distributed has joined."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from edm_ray.checkpoint import save_model
from edm_ray.checkpoint.store import Checkpoint
from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.schema import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import rank_positions, shares
from edm_ray.data.reader import Served, open_reader
from edm_ray.errors import InputError
from edm_ray.networks.build import build_denoiser
from edm_ray.training.damage import DamageLog
from edm_ray.training.device import cpu_threads, set_precision
from edm_ray.training.ema import ema_beta, gamma_of, power_beta, update_ema
from edm_ray.training.posthoc import save_snapshot
from edm_ray.training.run import MetricsLog, checkpoint_store, model_uri, refuse_mirrored_latents
from edm_ray.training.snapshots import snapshot_model_uri
from edm_ray.training.step import learning_rate, make_objective, settle_gradients, share_loss
from edm_ray.training.tally import Tally
from edm_ray.training.writer import BackgroundWriter, persist_or_warn

Metrics = dict[str, Any]


class Stopped(Exception):
    """Training was asked to end early and its state is saved; the same command goes on."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among the workers."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"


class Trainer:
    """State of one worker: denoiser, its averages, optimizer, images seen."""

    def __init__(self, config: TrainingConfig, place: Place, codec: Codec = PIXELS) -> None:
        self.config, self.place, self.device, self.codec = config, place, torch.device(place.device), codec
        set_precision(config, self.device)
        self.denoiser = build_denoiser(config.denoiser, seed=config.seed).to(self.device).train()
        self.average = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.powers = {width: copy.deepcopy(self.average) for width in config.ema.sigma_rels}
        self.parameters = list(self.denoiser.parameters())
        adam, cuda = config.optimizer, self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=adam.lr, betas=adam.betas, eps=adam.eps, foreach=not cuda, fused=cuda
        )
        self.objective = make_objective(config)
        self.images_seen = 0
        self.tally = Tally(self.device)
        self.data_wait_s = 0.0
        self.wrapped: torch.nn.Module = torch.compile(self.denoiser) if config.compile else self.denoiser
        if place.world_size > 1:
            ids = [self.device] if cuda else None
            self.wrapped = torch.nn.parallel.DistributedDataParallel(
                self.wrapped, device_ids=ids, broadcast_buffers=False
            )

    def step(self, pixels: Served) -> dict[str, float]:
        """One step on the next global batch; losses and norms go to the tally."""
        config, place = self.config, self.place
        positions = rank_positions(self.images_seen, config.batch_size, place.rank, place.world_size, config.lanes)
        self.optimizer.zero_grad(set_to_none=True)
        size = config.micro_batch or len(positions)
        parts = [positions[first : first + size] for first in range(0, len(positions), size)]
        for part in parts:
            began = time.monotonic()
            images, labels = pixels.at(part, config.seed)
            self.data_wait_s += time.monotonic() - began
            with self._gradients_stay_here() if part is not parts[-1] else contextlib.nullcontext():
                losses, sigmas = share_loss(
                    self.wrapped, self.objective, images, labels, part, config, self.device, self.codec
                )
                # DDP averages over the workers; times world size, the gradient is that of the whole batch, however it
                # is shared.
                (losses.sum() * (config.loss_scale * place.world_size / config.batch_size)).backward()
            self.tally.add_losses(losses, sigmas)
        self.tally.add_step(*settle_gradients(self.parameters, config.loss_scale, config.optimizer.grad_clip))
        rate = learning_rate(config.optimizer, self.images_seen)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        beta = ema_beta(config.ema, self.images_seen, config.batch_size)
        update_ema(self.average, self.denoiser, beta)
        self.images_seen += config.batch_size
        for width, average in self.powers.items():
            update_ema(average, self.denoiser, power_beta(gamma_of(width), self.images_seen // config.batch_size))
        return {"lr": rate, "ema_beta": beta}

    def _gradients_stay_here(self) -> contextlib.AbstractContextManager[Any]:
        """Between the rounds of one step, DDP need not exchange gradients."""
        return self.wrapped.no_sync() if self.place.world_size > 1 else contextlib.nullcontext()

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything a checkpoint holds, as plain named tensors."""
        moments = {}
        for name, parameter in self.denoiser.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{name}:{key}"] = value
        powers = {_power_stem(width): average.state_dict() for width, average in self.powers.items()}
        return {
            "model": self.denoiser.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": moments,
            "tally": self.tally.tensors(),
            **powers,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up exactly where the checkpoint was made."""
        self.denoiser.load_state_dict(checkpoint.tensors["model"])
        self.average.load_state_dict(checkpoint.tensors["ema"])
        for width, average in self.powers.items():
            average.load_state_dict(checkpoint.tensors[_power_stem(width)])
        named = dict(self.denoiser.named_parameters())
        for full, value in checkpoint.tensors["optimizer"].items():
            name, key = full.rsplit(":", 1)
            # Adam keeps its step counter on the host, unless it is fused.
            fused = self.optimizer.defaults["fused"]
            self.optimizer.state[named[name]][key] = value if key == "step" and not fused else value.to(self.device)
        self.tally.restore(checkpoint.tensors["tally"])
        self.images_seen = checkpoint.images_seen


def _power_stem(width: float) -> str:
    return f"ema-{width:g}"


def _agreed_checkpoint(store: Any, place: Place) -> Checkpoint | None:
    """Rank 0 looks which checkpoint is newest and whole; all load that one."""
    checkpoint = store.latest() if place.rank == 0 else None
    if place.world_size == 1:
        return checkpoint
    choice = [checkpoint.images_seen if checkpoint else None]
    dist.broadcast_object_list(choice, src=0)
    return checkpoint if place.rank == 0 or choice[0] is None else store.load(choice[0])


def train(
    config: TrainingConfig,
    dataset: DataSet,
    run_uri: str,
    place: Place,
    about: dict[str, Any],
    on_tick: Callable[[Metrics], None] = lambda metrics: None,
    must_stop: Callable[[], bool] = lambda: False,
    must_save: Callable[[], bool] = lambda: False,
    snapshot_kimg: float | None = None,
    served: Callable[[], Served] | None = None,
) -> None:
    """Train to the end, resuming from the newest whole checkpoint of ``run_uri``, and write the model directory.

    Every worker calls this; ``on_tick`` is called on every worker, equally often. ``about`` goes into the model
    directory. Checkpoints are made at ticks, so a resumed run writes the same metrics as one that was not interrupted.
    ``must_stop`` is asked after each step when this is the only worker: True makes a checkpoint and raises Stopped.
    ``must_save`` is asked at every tick, on every worker: True makes a checkpoint there (a machine will be taken away).
    ``snapshot_kimg``: at the first tick at or after every so many, and at the end, the averages become a model
    directory below RUN/snapshots; one that cannot be written is named in the log, and training goes on.
    ``served`` opens what images come from, where config.reader names another than the node's cache.
    """
    if len(rank_positions(0, config.batch_size, place.world_size - 1, place.world_size, config.lanes)) == 0:
        raise InputError(
            f"batch_size={config.batch_size} with lanes={config.lanes} leaves some of {place.world_size} workers "
            "without images; use fewer workers or a larger batch"
        )
    refuse_mirrored_latents(config, dataset)
    with cpu_threads(config.threads):
        _train(config, dataset, run_uri, place, about, on_tick, must_stop, must_save, snapshot_kimg, served)


def _cached(config: TrainingConfig, dataset: DataSet) -> Served:
    if config.reader != "cache":
        raise InputError(f"reader={config.reader} trains with Ray only: leave out --no-ray, or set reader=cache")
    return open_reader(dataset, config.xflip, on_damage=config.on_damage, order=config.order, lanes=config.lanes)


def _train(
    config: TrainingConfig,
    dataset: DataSet,
    run_uri: str,
    place: Place,
    about: dict[str, Any],
    on_tick: Callable[[Metrics], None],
    must_stop: Callable[[], bool],
    must_save: Callable[[], bool],
    snapshot_kimg: float | None,
    served: Callable[[], Served] | None,
) -> None:
    pixels = served() if served is not None else _cached(config, dataset)
    trainer = Trainer(config, place, dataset.codec)
    checkpoint = _agreed_checkpoint(checkpoint_store(run_uri), place)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    total = math.ceil(config.total_kimg * 1000 / config.batch_size) * config.batch_size
    where = (config.batch_size, place.rank, place.world_size, config.lanes, config.micro_batch)
    pixels.follow(shares(trainer.images_seen, total, *where), config.seed)
    log = MetricsLog(run_uri, trainer.images_seen) if place.rank == 0 else None
    writer = BackgroundWriter()
    watch = Stopwatch(trainer.images_seen)
    tick_start = last_tick(trainer.images_seen, config)
    damage = DamageLog(run_uri, pixels.lost)
    try:
        while trainer.images_seen < total:
            before = trainer.images_seen
            numbers = trainer.step(pixels)
            done = trainer.images_seen >= total
            stop = not done and place.world_size == 1 and must_stop()
            if not (done or stop or crossed(before, trainer.images_seen, config.tick_kimg)):
                continue
            writes: list[Callable[[str, Trainer], Callable[[], None]]] = []
            if done or crossed(before, trainer.images_seen, config.tick_kimg):
                row = {"nimg": trainer.images_seen, "total": total, **trainer.tally.read(place.world_size), **numbers}
                _refuse_nonfinite(run_uri, row)
                row |= watch.read(trainer)
                damage.update()
                if log is not None:
                    log.append(row)
                on_tick(row)
                urgent = must_save()
                # Snapshots first: a run goes on from a checkpoint, so what lies before it must be there.
                if trainer.powers and (done or crossed(tick_start, trainer.images_seen, config.ema.snapshot_kimg)):
                    writes.append(_snapshot)
                if snapshot_kimg and (done or crossed(tick_start, trainer.images_seen, snapshot_kimg)):
                    writes.append(functools.partial(_model_snapshot, about))
                if done or urgent or crossed(tick_start, trainer.images_seen, config.checkpoint_kimg):
                    writes.append(_checkpoint)
                tick_start = trainer.images_seen
            if stop and _checkpoint not in writes:
                writes.append(_checkpoint)
            if writes and place.rank == 0:
                began = time.monotonic()
                writer.submit(*(functools.partial(write, run_uri, trainer) for write in writes))
                watch.stall_s += time.monotonic() - began
            if stop:
                raise Stopped(f"{run_uri}: stopped at {trainer.images_seen:,} images, checkpoint written")
    finally:
        pixels.close()
        writer.close()
    if place.rank == 0:
        about = {**about, "images_seen": trainer.images_seen, "metrics": _metrics(log)}
        save_model(model_uri(run_uri), config.denoiser, trainer.average.state_dict(), about, dataset.codec)
    if place.world_size > 1:
        dist.barrier()


def _refuse_nonfinite(run_uri: str, row: Metrics) -> None:
    """A step without a finite gradient changes little and is counted; a run where most are such has failed."""
    if row["loss"] is None or 2 * row["nonfinite"] > row["steps"]:
        raise FloatingPointError(
            f"{run_uri}: the loss is not finite at {row['nimg']} images ({row['nonfinite']} of the last {row['steps']} "
            "steps); the last checkpoint is kept. Lower optimizer.lr or look at the data set"
        )


def _metrics(log: MetricsLog | None) -> dict[str, float]:
    """What training knows of its result, for the model card: means over the last tick."""
    rows = log.rows if log is not None else []
    return {f"training {name}, last tick": rows[-1][name] for name in ("loss", "grad_norm") if rows}


def _checkpoint(run_uri: str, trainer: Trainer) -> Callable[[], None]:
    """Copy the state to the host now; what is returned writes it."""
    images_seen, config = trainer.images_seen, trainer.config
    tensors = {stem: _copy(part) for stem, part in trainer.tensors().items()}
    state = {"images_seen": images_seen, "seed": config.seed}
    store = checkpoint_store(run_uri, config.keep_checkpoints)
    return lambda: store.save(images_seen, tensors, state)


def _snapshot(run_uri: str, trainer: Trainer) -> Callable[[], None]:
    """As `_checkpoint`, the power-function averages only."""
    images_seen = trainer.images_seen
    averages = {width: _copy(average.state_dict()) for width, average in trainer.powers.items()}
    dtype = getattr(torch, trainer.config.ema.snapshot_dtype)
    return lambda: save_snapshot(run_uri, images_seen, averages, dtype)


def _model_snapshot(about: dict[str, Any], run_uri: str, trainer: Trainer) -> Callable[[], None]:
    """As `_checkpoint`, the averages only, as a model directory; what is returned does not raise."""
    uri, config, codec = snapshot_model_uri(run_uri, trainer.images_seen), trainer.config.denoiser, trainer.codec
    average, about = _copy(trainer.average.state_dict()), {**about, "images_seen": trainer.images_seen}
    return lambda: persist_or_warn(lambda: save_model(uri, config, average, about, codec), uri)


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


class Stopwatch:
    """How fast it went since the last tick, and what it waited for."""

    def __init__(self, images_seen: int) -> None:
        self.images_seen, self.moment, self.stall_s = images_seen, time.monotonic(), 0.0

    def read(self, trainer: Trainer) -> dict[str, float]:
        """images_per_s, data_wait (share of the time), checkpoint_stall_s, memory_mib; then it starts again."""
        now = time.monotonic()
        elapsed = max(now - self.moment, 1e-9)
        memory = (
            torch.cuda.max_memory_allocated(trainer.device)
            if trainer.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        row = {
            "images_per_s": (trainer.images_seen - self.images_seen) / elapsed,
            "data_wait": trainer.data_wait_s / elapsed,
            "checkpoint_stall_s": self.stall_s,
            "memory_mib": memory / 2**20,
        }
        self.images_seen, self.moment = trainer.images_seen, now
        trainer.data_wait_s = self.stall_s = 0.0
        return row


def crossed(before: int, after: int, interval_kimg: float) -> bool:
    """Whether a multiple of the interval lies in (before, after]."""
    interval = max(1, round(interval_kimg * 1000))
    return after // interval > before // interval


def last_tick(images_seen: int, config: TrainingConfig) -> int:
    """The last tick at or before this moment: a run that was told to stop goes on in the middle of one."""
    interval = max(1, round(config.tick_kimg * 1000))
    return -(-(images_seen // interval * interval) // config.batch_size) * config.batch_size
