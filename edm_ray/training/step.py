"""One training step on this rank's share of a global batch: loss, gradients, Adam, EMA.

Everything random is keyed by an image's position in the training order, so the number of workers changes nothing but
the order of floating-point sums. (Dropout masks are keyed by step and rank: world sizes then agree in law only.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from edm_ray.config.schema import OptimizerConfig, TrainingConfig
from edm_ray.data.codec import decode
from edm_ray.diffusion.objectives import OBJECTIVES
from edm_ray.seeding import image_noise, normal, stream_key, uniform


def learning_rate(config: OptimizerConfig, images_seen: int) -> float:
    """Linear ramp over images; ``images_seen`` is counted before the step, so the first step has rate 0."""
    if config.ramp_kimg == 0:
        return config.lr
    return config.lr * min(images_seen / (config.ramp_kimg * 1000.0), 1.0)


def make_objective(config: TrainingConfig) -> Any:
    """The objective named in the configuration, with its constants."""
    kind = config.objective.kind
    if kind != "edm":
        return OBJECTIVES[kind]()
    sigma_data = config.denoiser.preconditioning.sigma_data
    return OBJECTIVES[kind](p_mean=config.objective.p_mean, p_std=config.objective.p_std, sigma_data=sigma_data)


def share_loss(
    denoiser: torch.nn.Module,
    objective: Any,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    positions: np.ndarray,
    config: TrainingConfig,
    device: torch.device,
) -> torch.Tensor:
    """Sum over this share of the per-image losses (each summed over C, H, W), as in the paper: a scalar."""
    where = torch.from_numpy(positions).to(device)
    source = normal if objective.draw == "normal" else uniform
    draw = source(stream_key("sigma", config.seed), where, 1)[:, 0].to(torch.float32)
    images = decode(pixels.to(device, non_blocking=True))
    noise = image_noise(where, "training noise", tuple(images.shape[1:]), config.seed)(0).to(torch.float32)
    classes = config.denoiser.network.label_dim
    one_hot = torch.nn.functional.one_hot(labels.to(device), classes).to(torch.float32) if classes else None
    return objective.loss(denoiser, images, draw, noise, class_labels=one_hot).sum()


def seed_dropout(config: TrainingConfig, images_seen: int, rank: int) -> None:
    """Key torch's own generator (used by dropout alone) to the step, so that a resumed run draws the same masks."""
    torch.manual_seed(stream_key(f"dropout:{images_seen}:{rank}", config.seed) >> 1)


def sanitise_gradients(parameters: list[torch.nn.Parameter]) -> tuple[float, int]:
    """Replace non-finite gradient entries (NaN by 0, infinities by +-1e5) and return (norm, how many there were).

    Runs on gradients already summed over the workers, so all workers do the same.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
    if math.isfinite(norm):
        return norm, 0
    count = sum(int((~torch.isfinite(gradient)).sum()) for gradient in gradients)
    for gradient in gradients:
        torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))), count
