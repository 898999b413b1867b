"""Named starting points. A preset is a function of the data set's shape, so the network always fits the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edm_ray.config.schema import (
    DenoiserConfig,
    EmaConfig,
    NetworkConfig,
    OptimizerConfig,
    PreconditioningConfig,
    TrainingConfig,
)
from edm_ray.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """What a network has to know of its data."""

    resolution: int
    channels: int
    num_classes: int


def digits(shape: DataShape) -> TrainingConfig:
    """Small DDPM++ for 8x8 digits: readable samples after 64,000 images, minutes on two CPU cores."""
    network = NetworkConfig(
        img_resolution=shape.resolution,
        img_channels=shape.channels,
        label_dim=shape.num_classes,
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(shape.resolution // 2,),
        dropout=0.0,
    )
    return TrainingConfig(
        denoiser=DenoiserConfig(network=network, preconditioning=PreconditioningConfig(sigma_data=0.75)),
        optimizer=OptimizerConfig(lr=2e-3, ramp_kimg=2.0),
        ema=EmaConfig(halflife_kimg=4.0),
        batch_size=128,
        total_kimg=64.0,
        tick_kimg=3.2,
        checkpoint_kimg=6.4,
    )


def tiny(shape: DataShape) -> TrainingConfig:
    """Seconds on one core: for tests, and to see whether a set-up works at all."""
    network = NetworkConfig(
        img_resolution=shape.resolution,
        img_channels=shape.channels,
        label_dim=shape.num_classes,
        model_channels=16,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
        dropout=0.1,
    )
    return TrainingConfig(
        denoiser=DenoiserConfig(network=network),
        optimizer=OptimizerConfig(lr=1e-3, ramp_kimg=0.1),
        ema=EmaConfig(halflife_kimg=0.1),
        batch_size=24,
        total_kimg=0.24,
        tick_kimg=0.048,
        checkpoint_kimg=0.096,
        lanes=12,
    )


def ddpmpp_32(shape: DataShape) -> TrainingConfig:
    """The paper's CIFAR-10 network and hyper-parameters (Table 7, "ours"), without augmentation."""
    network = NetworkConfig(
        img_resolution=shape.resolution,
        img_channels=shape.channels,
        label_dim=shape.num_classes,
        model_channels=128,
        channel_mult=(2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.13,
    )
    return TrainingConfig(denoiser=DenoiserConfig(network=network))


def ddpmpp_64(shape: DataShape) -> TrainingConfig:
    """The paper's FFHQ-64 network and hyper-parameters (Table 7, "ours"), without augmentation."""
    network = NetworkConfig(
        img_resolution=shape.resolution,
        img_channels=shape.channels,
        label_dim=shape.num_classes,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.05,
    )
    return TrainingConfig(
        denoiser=DenoiserConfig(network=network),
        optimizer=OptimizerConfig(lr=2e-4),
        batch_size=256,
    )


PRESETS: dict[str, Callable[[DataShape], TrainingConfig]] = {
    "digits": digits,
    "tiny": tiny,
    "ddpmpp-32": ddpmpp_32,
    "ddpmpp-64": ddpmpp_64,
}


def preset(name: str, shape: DataShape) -> TrainingConfig:
    if name not in PRESETS:
        raise InputError(f"--preset {name}: unknown preset{nearest(name, PRESETS)}; there are: {', '.join(PRESETS)}")
    return PRESETS[name](shape)
