"""One training step on this rank's share of a global batch: loss, gradient, optimizer, averages.

Everything random is keyed by an image's position in the training order - noise level, noise, augmentation, dropout
masks - so the number of workers changes nothing but the order of floating-point sums.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.training import OptimizerConfig, TrainingConfig
from edm_ray.data.codec import to_training
from edm_ray.data.order import rank_positions
from edm_ray.data.reader import Served
from edm_ray.diffusion.objectives import Objective, objective
from edm_ray.errors import InputError
from edm_ray.networks.dropout import key_dropout, words_needed
from edm_ray.seeding import image_noise, normal, stream_key, uniform, words
from edm_ray.training.augment import augment, augment_labels, draw_parameters
from edm_ray.training.device import Place, set_precision, to_device
from edm_ray.training.ema import ema_beta, gamma_of, power_beta, update_ema
from edm_ray.training.metrics import Stopwatch, Tally
from edm_ray.training.state import TrainingState

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
            self.network = torch.nn.parallel.DistributedDataParallel(
                self.network, device_ids=ids, broadcast_buffers=False
            )

    def take(self, images: Served) -> None:
        """One step on the next global batch."""
        config, state = self.config, self.state
        state.optimizer.zero_grad(set_to_none=True)
        self._add_gradients(images)
        norm, nonfinite = settle_gradients(state.parameters, config.loss_scale, config.optimizer.grad_clip)
        if config.optimizer.nonfinite == "stop" and self.device.type == "cpu" and bool(nonfinite):
            # A GPU would have to be waited for: there it is seen before anything is next written.
            raise _diverged(f"the gradient of the step to {state.images_seen + config.batch_size:,} images", 1, 1)
        self.tally.add_step(norm, nonfinite)
        self._update()

    def _add_gradients(self, images: Served) -> None:
        """Of this rank's share of the batch, in rounds of ``micro_batch`` images."""
        config, place = self.config, self.place
        positions = rank_positions(
            self.state.images_seen, config.batch_size, place.rank, place.world_size, config.lanes
        )
        size = config.micro_batch or len(positions)
        parts = [positions[first : first + size] for first in range(0, len(positions), size)]
        for part in parts:
            with self.watch.waiting_for_data():
                pixels, labels = images.at(part, config.seed)
            with self._gradients_stay_here() if part is not parts[-1] else contextlib.nullcontext():
                losses, sigmas = share_loss(
                    self.network, self.objective, pixels, labels, part, config, self.device, self.codec
                )
                # DDP averages over the workers; times world size, the gradient is that of the whole batch, however it
                # is shared.
                (losses.sum() * (config.loss_scale * place.world_size / config.batch_size)).backward()
            self.tally.add_losses(losses, sigmas)

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
        key_masks(self.network, to_device(torch.arange(count), self.device), config.seed)
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


def make_objective(config: TrainingConfig) -> Objective:
    """The objective named in the configuration; where it is of the preconditioning's kind it has its constants."""
    return objective(config.objective.kind, **config.objective.constants(config.denoiser.preconditioning))


def share_loss(
    denoiser: torch.nn.Module,
    objective: Objective,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    positions: np.ndarray,
    config: TrainingConfig,
    device: torch.device,
    codec: Codec = PIXELS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-image losses of images at these positions (each summed over C, H, W, as in the paper), and noise levels.

    denoiser: D, or D wrapped by DistributedDataParallel. pixels: as stored, [B, C, R, R]. Returns float32 [B], [B].
    """
    on_host = torch.from_numpy(positions)
    where = to_device(on_host, device)
    source = normal if objective.draw == "normal" else uniform
    draw = source(stream_key("sigma", config.seed), where, 1)[:, 0].to(torch.float32)
    images, told = to_training(to_device(pixels, device), codec), None
    if config.augment.probability > 0:
        parameters = draw_parameters(on_host, config.augment.probability, config.seed)
        images, told = augment(images, parameters), to_device(augment_labels(parameters), device)
    elif width := config.denoiser.network.augment_dim:
        # Zeros, not None: DistributedDataParallel wants a gradient for every parameter.
        told = torch.zeros(len(positions), width, device=device)
    noise = image_noise(where, "training noise", tuple(images.shape[1:]), config.seed)(0).to(torch.float32)
    classes = config.denoiser.network.label_dim
    one_hot = torch.nn.functional.one_hot(to_device(labels, device), classes).to(torch.float32) if classes else None
    key_masks(denoiser, where, config.seed)
    with autocast(config, device):
        losses = objective.loss(denoiser, images, draw, noise, class_labels=one_hot, augment_labels=told)
    return losses.sum((1, 2, 3)), objective.sigma(draw)


def key_masks(denoiser: torch.nn.Module, positions: torch.Tensor, seed: int) -> None:
    """Key the dropout masks of the next forward pass to the images at these positions."""
    network = getattr(denoiser, "module", denoiser)
    if needed := words_needed(network):
        key_dropout(network, words(stream_key("dropout", seed), positions, needed))


def autocast(config: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Low precision for convolutions and matrix products; everything around the network stays float32."""
    if config.precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[config.precision])


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
