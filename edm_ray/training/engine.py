"""The training loop. It runs in a plain process or as one of several that torch.distributed has joined."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import rank_positions, shares
from edm_ray.data.reader import Served, open_reader
from edm_ray.errors import InputError
from edm_ray.models import save_model
from edm_ray.models.checkpoints import Checkpoint
from edm_ray.networks.build import build_denoiser
from edm_ray.training import saves
from edm_ray.training.device import cpu_threads, set_precision, to_device
from edm_ray.training.ema import ema_beta, gamma_of, power_beta, update_ema
from edm_ray.training.run import MetricsLog, checkpoint_store, model_uri, refuse_mirrored_latents
from edm_ray.training.signals import Wish, Wishes, nothing
from edm_ray.training.skipped_shards import DamageLog
from edm_ray.training.step import (
    autocast,
    key_masks,
    learning_rate,
    make_objective,
    settle_gradients,
    share_loss,
)
from edm_ray.training.tally import Tally
from edm_ray.training.ticks import Stopwatch, crossed, last_tick
from edm_ray.training.writer import BackgroundWriter

Metrics = dict[str, Any]


class Stopped(Exception):
    """Training was asked to end early and its state is saved; the same command goes on."""


class Diverged(InputError, FloatingPointError):
    """Loss or gradient are not finite; all workers raise it after the same step, and the last checkpoint is kept."""


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
        norm, nonfinite = settle_gradients(self.parameters, config.loss_scale, config.optimizer.grad_clip)
        if config.optimizer.nonfinite == "stop" and self.device.type == "cpu" and bool(nonfinite):
            # A GPU would have to be waited for: there it is seen before anything is next written.
            raise _nonfinite(f"the gradient of the step to {self.images_seen + config.batch_size:,} images", 1, 1)
        self.tally.add_step(norm, nonfinite)
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

    def rehearse(self) -> None:
        """A backward pass that changes nothing, before the first step of several workers.

        DistributedDataParallel puts gradients into buckets, and after the first exchange into other buckets, in the
        order in which they came. Where three or more workers add up, the place in a bucket decides the order of the
        sum: a resumed run would take its first step with other buckets, and other last bits, than one that went on.
        """
        config, place = self.config, self.place
        share = len(rank_positions(0, config.batch_size, place.rank, place.world_size, config.lanes))
        count, network = min(config.micro_batch or share, share), config.denoiser.network
        key_masks(self.wrapped, to_device(torch.arange(count), self.device), config.seed)
        shape = (count, network.img_channels, network.img_resolution, network.img_resolution)
        images, sigma = (torch.ones(size, device=self.device) for size in (shape, count))
        labels = {
            name: torch.zeros(count, width, device=self.device)
            for name, width in (("class_labels", network.label_dim), ("augment_labels", network.augment_dim))
            if width
        }
        with autocast(config, self.device):
            output = self.wrapped(images, sigma, **labels)
        output.sum().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients_stay_here(self) -> contextlib.AbstractContextManager[Any]:
        """Between the rounds of one step, DDP need not exchange gradients."""
        return self.wrapped.no_sync() if self.place.world_size > 1 else contextlib.nullcontext()

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything a checkpoint holds but the tally, as plain named tensors."""
        moments = {}
        for name, parameter in self.denoiser.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{name}:{key}"] = value
        powers = {_power_stem(width): average.state_dict() for width, average in self.powers.items()}
        return {
            "model": self.denoiser.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": moments,
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
        self.tally.restore(checkpoint.tensors["tally"]["sums"], self.place.rank, self.place.world_size)
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
    ask: Callable[[], Wish] = nothing,
    snapshot_kimg: float | None = None,
    served: Callable[[], Served] | None = None,
) -> None:
    """Train to the end, resuming from the newest whole checkpoint of ``run_uri``, and write the model directory.

    Every worker calls this; ``on_tick`` is called on every worker, equally often. ``about`` goes into the model
    directory. A resumed run writes the same metrics as one that was not interrupted. ``ask`` is called after each step,
    on every worker, and what one of them wishes all do after the same step: SAVE makes a checkpoint, STOP makes one and
    raises Stopped.
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
        _train(config, dataset, run_uri, place, about, on_tick, ask, snapshot_kimg, served)


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
    ask: Callable[[], Wish],
    snapshot_kimg: float | None,
    served: Callable[[], Served] | None,
) -> None:
    pixels = served() if served is not None else _cached(config, dataset)
    trainer = Trainer(config, place, dataset.codec)
    store = checkpoint_store(run_uri, config.keep_checkpoints)
    checkpoint = _agreed_checkpoint(store, place)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    if place.world_size > 1:
        trainer.rehearse()
    total = math.ceil(config.total_kimg * 1000 / config.batch_size) * config.batch_size
    where = (config.batch_size, place.rank, place.world_size, config.lanes, config.micro_batch)
    pixels.follow(shares(trainer.images_seen, total, *where), config.seed)
    log = MetricsLog(run_uri, trainer.images_seen) if place.rank == 0 else None
    writer, wishes, heeded = BackgroundWriter(), Wishes(ask, place.world_size), Wish.NOTHING
    watch = Stopwatch(trainer.images_seen)
    tick_start = last_tick(trainer.images_seen, config)
    damage = DamageLog(run_uri, pixels.lost)
    try:
        while trainer.images_seen < total:
            before = trainer.images_seen
            numbers = trainer.step(pixels)
            done = trainer.images_seen >= total
            at_tick = done or crossed(before, trainer.images_seen, config.tick_kimg)
            wish = wishes.after_step()
            # A wish is fulfilled when it comes, and again at each tick while it lasts.
            keep = wish > Wish.NOTHING and (at_tick or wish > heeded)
            heeded = wish
            if not (at_tick or keep):
                continue
            _refuse_nonfinite(trainer, at_tick)
            writes: list[Callable[[], saves.Write]] = []
            if at_tick:
                row = {"nimg": trainer.images_seen, "total": total, **trainer.tally.read(place.world_size), **numbers}
                if row["loss"] is None:
                    raise _nonfinite(f"every loss before {trainer.images_seen:,} images", row["steps"], row["steps"])
                row |= watch.read(trainer)
                damage.update()
                if log is not None:
                    log.append(row)
                on_tick(row)
                # Snapshots first: a run goes on from a checkpoint, so what lies before it must be there.
                if trainer.powers and (done or crossed(tick_start, trainer.images_seen, config.ema.snapshot_kimg)):
                    writes.append(lambda: saves.averages(run_uri, trainer))
                if snapshot_kimg and (done or crossed(tick_start, trainer.images_seen, snapshot_kimg)):
                    writes.append(lambda: saves.model(run_uri, trainer, about))
                keep |= done or crossed(tick_start, trainer.images_seen, config.checkpoint_kimg)
                tick_start = trainer.images_seen
            if keep:
                tallies = wishes.gather(trainer.tally.sums())
                writes.append(functools.partial(saves.checkpoint, store, trainer, tallies))
            if writes and place.rank == 0:
                began = time.monotonic()
                writer.submit(*writes)
                watch.stall_s += time.monotonic() - began
            if wish is Wish.STOP and not done:
                wishes.close()
                raise Stopped(f"{run_uri}: stopped at {trainer.images_seen:,} images, checkpoint written")
        wishes.close()
    finally:
        pixels.close()
        writer.close()
    if place.rank == 0:
        about = {**about, "images_seen": trainer.images_seen, "metrics": _metrics(log)}
        save_model(model_uri(run_uri), config.denoiser, trainer.average.state_dict(), about, dataset.codec)
    if place.world_size > 1:
        dist.barrier()


def _refuse_nonfinite(trainer: Trainer, at_tick: bool) -> None:
    """Before anything is written: raise Diverged, on all ranks alike, where this state is not to be kept."""
    bad, steps = round(float(trainer.tally.nonfinite)), trainer.tally.steps
    if bad and (trainer.config.optimizer.nonfinite == "stop" or (at_tick and 2 * bad > steps)):
        raise _nonfinite(f"the gradient before {trainer.images_seen:,} images", bad, steps)


def _nonfinite(what: str, bad: int, steps: int) -> Diverged:
    return Diverged(
        f"{what} is not finite ({bad} of the last {steps} steps); nothing of that is kept, the last checkpoint is from "
        "before. The same command would meet the same images: lower optimizer.lr, look at the data set, or give --set "
        "optimizer.nonfinite=replace to go on as the paper's code does"
    )


def _metrics(log: MetricsLog | None) -> dict[str, float]:
    """What training knows of its result, for the model card: means over the last tick."""
    rows = log.rows if log is not None else []
    return {f"training {name}, last tick": rows[-1][name] for name in ("loss", "grad_norm") if rows}
