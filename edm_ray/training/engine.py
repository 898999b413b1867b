"""The training loop. It runs in a plain process or as one of several that torch.distributed has joined."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from edm_ray.checkpoint import save_model
from edm_ray.checkpoint.store import Checkpoint
from edm_ray.config.schema import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import rank_positions
from edm_ray.data.reader import Pixels
from edm_ray.errors import InputError
from edm_ray.networks.build import build_denoiser
from edm_ray.training.ema import ema_beta, update_ema
from edm_ray.training.run import MetricsLog, checkpoint_store, model_uri
from edm_ray.training.step import learning_rate, make_objective, sanitise_gradients, seed_dropout, share_loss

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where this process stands among the workers."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"


class Trainer:
    """State of one worker: denoiser, its average, optimizer, images seen."""

    def __init__(self, config: TrainingConfig, place: Place) -> None:
        self.config, self.place, self.device = config, place, torch.device(place.device)
        self.denoiser = build_denoiser(config.denoiser, seed=config.seed).to(self.device).train()
        self.average = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.parameters = list(self.denoiser.parameters())
        adam = config.optimizer
        self.optimizer = torch.optim.Adam(self.parameters, lr=adam.lr, betas=adam.betas, eps=adam.eps, foreach=True)
        self.objective = make_objective(config)
        self.images_seen = 0
        self.wrapped = self.denoiser
        if place.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.wrapped = torch.nn.parallel.DistributedDataParallel(
                self.denoiser, device_ids=ids, broadcast_buffers=False
            )

    def step(self, pixels: Pixels) -> Metrics:
        """One step on the next global batch; returns this rank's numbers."""
        config, place = self.config, self.place
        positions = rank_positions(self.images_seen, config.batch_size, place.rank, place.world_size, config.lanes)
        images, labels = pixels.at(positions, config.seed)
        seed_dropout(config, self.images_seen, place.rank)
        self.optimizer.zero_grad(set_to_none=True)
        total = share_loss(self.wrapped, self.objective, images, labels, positions, config, self.device)
        # DDP averages over the workers; times world size, the gradient is that of the whole batch however it is shared.
        (total * (place.world_size / config.batch_size)).backward()
        norm, nonfinite = sanitise_gradients(self.parameters)
        rate = learning_rate(config.optimizer, self.images_seen)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        beta = ema_beta(config.ema, self.images_seen, config.batch_size)
        update_ema(self.average, self.denoiser, beta)
        self.images_seen += config.batch_size
        return {"loss": float(total.detach()), "grad_norm": norm, "nonfinite": nonfinite, "lr": rate, "ema_beta": beta}

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything a checkpoint holds, as plain named tensors."""
        moments = {}
        for name, parameter in self.denoiser.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{name}:{key}"] = value
        return {"model": self.denoiser.state_dict(), "ema": self.average.state_dict(), "optimizer": moments}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up exactly where the checkpoint was made."""
        self.denoiser.load_state_dict(checkpoint.tensors["model"])
        self.average.load_state_dict(checkpoint.tensors["ema"])
        named = dict(self.denoiser.named_parameters())
        for full, value in checkpoint.tensors["optimizer"].items():
            name, key = full.rsplit(":", 1)
            # Adam keeps its step counter on the host.
            self.optimizer.state[named[name]][key] = value if key == "step" else value.to(self.device)
        self.images_seen = checkpoint.images_seen


def _agreed_checkpoint(store: Any, place: Place) -> Checkpoint | None:
    """Rank 0 looks which checkpoint is newest and whole; all load that one."""
    checkpoint = store.latest() if place.rank == 0 else None
    if place.world_size == 1:
        return checkpoint
    choice = [checkpoint.images_seen if checkpoint else None]
    dist.broadcast_object_list(choice, src=0)
    return checkpoint if place.rank == 0 or choice[0] is None else store.load(choice[0])


def _summed(values: list[float], place: Place, device: torch.device) -> list[float]:
    if place.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def train(
    config: TrainingConfig,
    dataset: DataSet,
    run_uri: str,
    place: Place,
    about: dict[str, Any],
    on_tick: Callable[[Metrics], None] = lambda metrics: None,
) -> None:
    """Train to the end, resuming from the newest whole checkpoint of ``run_uri``, and write the model directory.

    Every worker calls this; ``on_tick`` is called on every worker, equally often. ``about`` goes into the model
    directory. Checkpoints are made at ticks, so a resumed run writes the same metrics as one that was not interrupted.
    """
    if len(rank_positions(0, config.batch_size, place.world_size - 1, place.world_size, config.lanes)) == 0:
        raise InputError(
            f"batch_size={config.batch_size} with lanes={config.lanes} leaves some of {place.world_size} workers "
            "without images; use fewer workers or a larger batch"
        )
    pixels = Pixels(dataset, config.xflip)
    trainer = Trainer(config, place)
    store = checkpoint_store(run_uri, config.keep_checkpoints)
    if (checkpoint := _agreed_checkpoint(store, place)) is not None:
        trainer.restore(checkpoint)
    total = math.ceil(config.total_kimg * 1000 / config.batch_size) * config.batch_size
    log = MetricsLog(run_uri, trainer.images_seen) if place.rank == 0 else None
    started, first_image = time.monotonic(), trainer.images_seen
    losses, norms, nonfinite = [], [], 0
    tick_start = trainer.images_seen
    while trainer.images_seen < total:
        before = trainer.images_seen
        numbers = trainer.step(pixels)
        losses.append(numbers["loss"])
        norms.append(numbers["grad_norm"])
        nonfinite += numbers["nonfinite"]
        done = trainer.images_seen >= total
        if done or _crossed(before, trainer.images_seen, config.tick_kimg):
            summed = _summed([math.fsum(losses)], trainer.place, trainer.device)[0]
            mean_loss = summed / (len(losses) * config.batch_size)
            if not math.isfinite(mean_loss):
                raise FloatingPointError(
                    f"{run_uri}: the loss is not finite at {trainer.images_seen} images; the last checkpoint is kept. "
                    "Lower optimizer.lr or look at the data set"
                )
            row = {
                "nimg": trainer.images_seen,
                "total": total,
                "loss": mean_loss,
                "grad_norm": math.fsum(norms) / len(norms),
                "nonfinite": nonfinite,
                "lr": numbers["lr"],
                "ema_beta": numbers["ema_beta"],
                "images_per_s": (trainer.images_seen - first_image) / (time.monotonic() - started),
            }
            losses, norms, nonfinite = [], [], 0
            if log is not None:
                log.append(row)
            on_tick(row)
            if place.rank == 0 and (done or _crossed(tick_start, trainer.images_seen, config.checkpoint_kimg)):
                state = {"images_seen": trainer.images_seen, "seed": config.seed}
                store.save(trainer.images_seen, trainer.tensors(), state)
            tick_start = trainer.images_seen
    if place.rank == 0:
        about = {**about, "images_seen": trainer.images_seen}
        save_model(model_uri(run_uri), config.denoiser, trainer.average.state_dict(), about)
    if place.world_size > 1:
        dist.barrier()


def _crossed(before: int, after: int, interval_kimg: float) -> bool:
    """Whether a multiple of the interval lies in (before, after]."""
    interval = max(1, round(interval_kimg * 1000))
    return after // interval > before // interval
