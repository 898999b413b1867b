"""What a round of images is trained on, and its loss.

Everything random is drawn from an image's position in the training order: noise level, noise, augmentation, dropout.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.training import TrainingConfig
from edm_ray.data.codec import to_training
from edm_ray.diffusion import objectives
from edm_ray.diffusion.objectives import Objective
from edm_ray.networks.dropout import key_dropout, words_needed
from edm_ray.seeding import image_noise, normal, stream_key, uniform, words
from edm_ray.training.augment import augment, augment_labels, draw_parameters
from edm_ray.training.device import to_device

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_objective(config: TrainingConfig) -> Objective:
    """The objective named in the configuration; where it is of the preconditioning's kind it has its constants."""
    return objectives.objective(config.objective.kind, **config.objective.constants(config.denoiser.preconditioning))


@dataclass(frozen=True)
class Drawn:
    """A round's images and everything random about them, on the device, one row an image; the loss is a function of
    these and the parameters."""

    images: torch.Tensor
    draw: torch.Tensor
    noise: torch.Tensor
    classes: torch.Tensor | None
    augmented: torch.Tensor | None
    masks: torch.Tensor | None

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return tuple(getattr(self, entry.name) for entry in fields(self))


def draw_round(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    positions: np.ndarray,
    config: TrainingConfig,
    objective: Objective,
    device: torch.device,
    codec: Codec = PIXELS,
    mask_words: int = 0,
) -> Drawn:
    """For the images at these positions of the training order. pixels: as stored, [B, C, R, R]; mask_words: what the
    network's dropout takes an image (`networks.dropout.words_needed`)."""
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
    masks = words(stream_key("dropout", config.seed), where, mask_words) if mask_words else None
    return Drawn(images, draw, noise, one_hot, told, masks)


def round_loss(
    denoiser: torch.nn.Module, objective: Objective, drawn: Drawn, config: TrainingConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-image losses (each summed over C, H, W, as in the paper), and noise levels: float32 [B], [B].

    denoiser: D, or D wrapped by DistributedDataParallel.
    """
    if drawn.masks is not None:
        key_dropout(getattr(denoiser, "module", denoiser), drawn.masks)
    with autocast(config, drawn.images.device):
        losses = objective.loss(
            denoiser, drawn.images, drawn.draw, drawn.noise, class_labels=drawn.classes, augment_labels=drawn.augmented
        )
    return losses.sum((1, 2, 3)), objective.sigma(drawn.draw)


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
    """`round_loss` of the images at these positions."""
    needed = words_needed(getattr(denoiser, "module", denoiser))
    drawn = draw_round(pixels, labels, positions, config, objective, device, codec, needed)
    return round_loss(denoiser, objective, drawn, config)


def autocast(config: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Low precision for convolutions and matrix products; everything around the network stays float32."""
    if config.precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[config.precision])
