"""One training step on this rank's share of a global batch: what goes into the loss, and what happens to the gradient.

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
from edm_ray.diffusion.objectives import Objective, objective
from edm_ray.networks.dropout import key_dropout, words_needed
from edm_ray.seeding import image_noise, normal, stream_key, uniform, words
from edm_ray.training.augment import augment, augment_labels, draw_parameters
from edm_ray.training.device import to_device

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
