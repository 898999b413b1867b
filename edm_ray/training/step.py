"""One training step on this rank's share of a global batch: loss, gradient, optimizer, averages.

Everything random is keyed by an image's position in the training order - noise level, noise, augmentation, dropout
masks - so the number of workers changes nothing but the order of floating-point sums.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.network import OwnNetwork
from edm_ray.config.training import OptimizerConfig, TrainingConfig
from edm_ray.data.order import rank_positions
from edm_ray.data.reader import Served
from edm_ray.errors import InputError
from edm_ray.networks.dropout import key_dropout, words_needed
from edm_ray.networks.replay import Replay
from edm_ray.seeding import stream_key, words
from edm_ray.training.cost import out_of_memory
from edm_ray.training.device import Place, set_precision, to_device
from edm_ray.training.ema import ema_beta, gamma_of, power_beta, update_ema
from edm_ray.training.loss import Drawn, autocast, draw_round, make_objective, round_loss
from edm_ray.training.metrics import Stopwatch, Tally
from edm_ray.training.state import TrainingState

# Workers' buffers are alike and stay so. PyTorch 2.13 has another name for it, and warns of the old one.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class Diverged(InputError, FloatingPointError):
    """Loss or gradient are not finite; all workers raise it after the same step, and the last checkpoint is kept."""


class TrainingStep:
    """Takes steps that change ``state``, and counts what they were like until a tick reads it."""

    def __init__(self, config: TrainingConfig, place: Place, state: TrainingState, codec: Codec = PIXELS) -> None:
        self.config, self.place, self.state, self.codec = config, place, state, codec
        self.device = state.device
        set_precision(config, self.device)
        self.objective = make_objective(config)
        self.tally, self.watch = Tally(self.device), Stopwatch(self.device)
        self.rates: dict[str, float] = {}
        self.network: Any = torch.compile(state.denoiser) if config.compile else state.denoiser
        if place.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=ids, **NO_BUFFERS)
        self.mask_words = words_needed(state.denoiser)
        self.replay = Replay(self._whole_gradient) if self._can_be_recorded() else None

    def _can_be_recorded(self) -> bool:
        """On one GPU; several exchange gradients within the backward pass. The user's own modules may read numbers, and
        what torch.compile makes was not tried."""
        config = self.config
        ours = not isinstance(config.denoiser.network, OwnNetwork) and not config.compile
        return config.graph and ours and self.device.type == "cuda" and self.place.world_size == 1

    def take(self, images: Served) -> None:
        """One step on the next global batch."""
        config, state = self.config, self.state
        try:
            norm, nonfinite = self._gradient(images)
        except torch.OutOfMemoryError:
            raise InputError(out_of_memory(config, self.place, self.device)) from None
        if config.optimizer.nonfinite == "stop" and self.device.type == "cpu" and bool(nonfinite):
            # A GPU would have to be waited for: there it is seen before anything is next written.
            raise _diverged(f"the gradient of the step to {state.images_seen + config.batch_size:,} images", 1, 1)
        self.tally.add_step(norm, nonfinite)
        self._update()

    def _gradient(self, images: Served) -> tuple[torch.Tensor, torch.Tensor]:
        """Of this rank's share of the batch, in rounds of ``micro_batch`` images; as `settle_gradients` leaves it."""
        config, place = self.config, self.place
        positions = rank_positions(
            self.state.images_seen, config.batch_size, place.rank, place.world_size, config.lanes
        )
        size = config.micro_batch or len(positions)
        parts = [positions[first : first + size] for first in range(0, len(positions), size)]
        if self.replay is not None and len(parts) == 1:
            losses, sigmas, norm, nonfinite = self.replay(*self._drawn(images, parts[0]).tensors)
            self.tally.add_losses(losses, sigmas)
            return norm, nonfinite
        self.state.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            drawn = self._drawn(images, part)
            with self._gradients_stay_here() if part is not parts[-1] else contextlib.nullcontext():
                self.tally.add_losses(*self._backward(drawn))
        return settle_gradients(self.state.parameters, config.loss_scale, config.optimizer.grad_clip)

    def _drawn(self, images: Served, part: np.ndarray) -> Drawn:
        with self.watch.waiting_for_data():
            pixels, labels = images.at(part, self.config.seed)
        return draw_round(pixels, labels, part, self.config, self.objective, self.device, self.codec, self.mask_words)

    def _backward(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a round's gradient; its losses and noise levels."""
        losses, sigmas = round_loss(self.network, self.objective, drawn, self.config)
        # DDP averages over the workers; times world size, the gradient is that of the whole batch.
        (losses.sum() * (self.config.loss_scale * self.place.world_size / self.config.batch_size)).backward()
        return losses.detach(), sigmas

    def _whole_gradient(self, *drawn: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """A step of one round, from nothing to the settled gradient: what a GPU records."""
        for parameter in self.state.parameters:
            parameter.grad = None
        losses, sigmas = self._backward(Drawn(*drawn))  # type: ignore[arg-type]
        optimizer = self.config.optimizer
        return (losses, sigmas, *settle_gradients(self.state.parameters, self.config.loss_scale, optimizer.grad_clip))

    def _update(self) -> None:
        config, state = self.config, self.state
        rate = learning_rate(config.optimizer, state.images_seen)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        beta = ema_beta(config.ema, state.images_seen, config.batch_size)
        update_ema(state.average, state.denoiser, beta)
        state.images_seen += config.batch_size
        for width, average in state.powers.items():
            update_ema(average, state.denoiser, power_beta(gamma_of(width), state.images_seen // config.batch_size))
        self.rates = {"lr": rate, "ema_beta": beta}

    def rehearse(self) -> None:
        """A backward pass that changes nothing, before the first step of several workers.

        DistributedDataParallel puts gradients into buckets, and after the first exchange into other buckets, in the
        order in which they came. Where three or more workers add up, the place in a bucket decides the order of the
        sum: a resumed run would take its first step with other buckets, and other last bits, than one that went on.
        """
        config, place = self.config, self.place
        share = len(rank_positions(0, config.batch_size, place.rank, place.world_size, config.lanes))
        count, network = min(config.micro_batch or share, share), config.denoiser.network
        if self.mask_words:
            ahead = words(
                stream_key("dropout", config.seed), to_device(torch.arange(count), self.device), self.mask_words
            )
            key_dropout(self.state.denoiser, ahead)
        shape = (count, network.img_channels, network.img_resolution, network.img_resolution)
        images, sigma = (torch.ones(size, device=self.device) for size in (shape, count))
        labels = {
            name: torch.zeros(count, width, device=self.device)
            for name, width in (("class_labels", network.label_dim), ("augment_labels", network.augment_dim))
            if width
        }
        with autocast(config, self.device):
            output = self.network(images, sigma, **labels)
        output.sum().backward()
        self.state.optimizer.zero_grad(set_to_none=True)

    def _gradients_stay_here(self) -> contextlib.AbstractContextManager[Any]:
        """Between the rounds of one step, DDP need not exchange gradients."""
        return self.network.no_sync() if self.place.world_size > 1 else contextlib.nullcontext()

    def refuse_nonfinite(self, at_tick: bool) -> None:
        """Before anything is written: raise Diverged, on all ranks alike, where this state is not to be kept."""
        bad, steps = round(float(self.tally.nonfinite)), self.tally.steps
        if bad and (self.config.optimizer.nonfinite == "stop" or (at_tick and 2 * bad > steps)):
            raise _diverged(f"the gradient before {self.state.images_seen:,} images", bad, steps)

    def numbers(self) -> dict[str, Any]:
        """Means since the last tick over all workers, which all call this, and the rates of the last step. Raises
        Diverged when no loss was finite."""
        numbers = self.tally.read(self.place.world_size)
        if numbers["loss"] is None:
            raise _diverged(f"every loss before {self.state.images_seen:,} images", numbers["steps"], numbers["steps"])
        return {**numbers, **self.rates}


def _diverged(what: str, bad: int, steps: int) -> Diverged:
    return Diverged(
        f"{what} is not finite ({bad} of the last {steps} steps); nothing of that is kept, the last checkpoint is from "
        "before. The same command would meet the same images: lower optimizer.lr, look at the data set, or give --set "
        "optimizer.nonfinite=replace to continue as the paper's code does"
    )


def learning_rate(config: OptimizerConfig, images_seen: int) -> float:
    """Linear ramp over images; ``images_seen`` is counted before the step, so the first step has rate 0."""
    if config.ramp_kimg == 0:
        return config.lr
    return config.lr * min(images_seen / (config.ramp_kimg * 1000.0), 1.0)


def settle_gradients(
    parameters: list[torch.nn.Parameter], loss_scale: float, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the gradient fit for Adam: divide by the loss scale, NaN -> 0 and infinities -> +-1e5, cut its norm at clip.

    Returns (norm before clipping, 1 if any entry was not finite else 0), as float64 scalars on the device: nothing
    waits for it. It sees gradients that are summed over the workers already, so all workers do the same.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if loss_scale != 1:
        torch._foreach_mul_(gradients, 1 / loss_scale)
    norm = _norm(gradients)
    finite = torch.isfinite(norm)
    if gradients[0].device.type != "cpu" or not bool(finite):
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
        norm = _norm(gradients)
    if clip > 0:
        factor = (clip / norm.clamp_min(1e-30)).clamp_max(1.0)
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    return norm.double(), (~finite).double()


def _norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm
