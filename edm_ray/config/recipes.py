"""The paper's training configurations A-F (Karras et al. 2022, Table 2), each as a change of the one before.

Read top to bottom, the six functions are the left column of Table 2. The numbers are those of Table 7 and appendix F;
where the paper does not print one, the comment says "recalled": it is what Song et al. 2021 are known to have used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import ADM, NETWORKS
from edm_ray.config.objective import OBJECTIVES, EDMObjective
from edm_ray.config.preconditioning import PRECONDITIONINGS, EDMPreconditioning
from edm_ray.config.shape import DataShape
from edm_ray.config.training import AugmentConfig, EmaConfig, OptimizerConfig, TrainingConfig

T = TypeVar("T")
LETTERS = ("a", "b", "c", "d", "e", "f")
NUM_AUGMENT_LABELS = 9


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the configurations of one data set differ in from those of another (Table 7)."""

    name: str
    resolution: int
    baseline_mult: tuple[int, ...]
    """Channel multipliers of Song's network (A, B)."""
    channel_mult: tuple[int, ...]
    """Channel multipliers from C on."""
    batch_size: int
    lr: float
    dropout: float
    augment_probability: float
    model_channels: int = 128
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)


CIFAR10 = Family(
    name="CIFAR-10",
    resolution=32,
    baseline_mult=(1, 2, 2, 2),
    channel_mult=(2, 2, 2),
    batch_size=512,
    lr=1e-3,
    dropout=0.13,
    augment_probability=0.12,
)
FFHQ64 = Family(
    name="FFHQ-64",
    resolution=64,
    baseline_mult=(1, 1, 2, 2, 2),
    channel_mult=(1, 2, 2, 2),
    batch_size=256,
    lr=2e-4,
    dropout=0.05,
    augment_probability=0.15,
)
AFHQV2_64 = dataclasses.replace(FFHQ64, name="AFHQv2-64", dropout=0.25)


def change(config: T, **changes: Any) -> T:
    """A copy of a configuration; ``a__b=value`` changes field b of part a."""
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        part, _, rest = key.partition("__")
        if rest:
            below.setdefault(part, {})[rest] = value
        else:
            here[part] = value
    here |= {part: change(getattr(config, part), **inner) for part, inner in below.items()}
    changed: T = dataclasses.replace(config, **here)  # type: ignore[type-var]
    return changed


def config_a(shape: DataShape, family: Family, column: str) -> TrainingConfig:
    """Baseline: Song's DDPM++ with the VP formulas, or NCSN++ with the VE formulas."""
    vp = column == "vp"
    return TrainingConfig(
        denoiser=DenoiserConfig(
            network=NETWORKS(
                kind="ddpmpp" if vp else "ncsnpp",
                img_resolution=shape.resolution,
                img_channels=shape.channels,
                label_dim=shape.num_classes,
                model_channels=family.model_channels,
                channel_mult=family.baseline_mult,
                num_blocks=family.num_blocks,
                attn_resolutions=family.attn_resolutions,
                dropout=0.10,  # recalled
            ),
            preconditioning=PRECONDITIONINGS(column),
        ),
        objective=OBJECTIVES(column),
        optimizer=OptimizerConfig(lr=2e-4, ramp_kimg=640.0, grad_clip=1.0),  # ramp recalled: 5000 steps
        # Recalled: decay 0.9999 (VP) and 0.999 (VE) a step of 128 images, as half-lives.
        ema=EmaConfig(halflife_kimg=887.2 if vp else 88.7, rampup_ratio=0.0),
        xflip=True,  # recalled
        batch_size=128,
        total_kimg=200_000.0,
    )


def config_b(shape: DataShape, family: Family, column: str) -> TrainingConfig:
    """+ Adjust hyperparameters: batch, learning rate and its ramp, no clipping, EMA, dropout."""
    return change(
        config_a(shape, family, column),
        batch_size=family.batch_size,
        optimizer__lr=family.lr,
        optimizer__ramp_kimg=10_000.0,
        optimizer__grad_clip=0.0,
        ema__halflife_kimg=500.0,
        ema__rampup_ratio=0.05,
        denoiser__network__dropout=family.dropout,
    )


def config_c(shape: DataShape, family: Family, column: str) -> TrainingConfig:
    """+ Redistribute capacity: no 4x4 level, the high-resolution levels twice as wide."""
    return change(config_b(shape, family, column), denoiser__network__channel_mult=family.channel_mult)


def config_d(shape: DataShape, family: Family, column: str) -> TrainingConfig:
    """+ Our preconditioning; the loss stays the old one."""
    return change(config_c(shape, family, column), denoiser__preconditioning=EDMPreconditioning())


def config_e(shape: DataShape, family: Family, column: str) -> TrainingConfig:
    """+ Our loss function: p_train(sigma) and lambda(sigma)."""
    return change(config_d(shape, family, column), objective=EDMObjective())


def config_f(shape: DataShape, family: Family, column: str) -> TrainingConfig:
    """+ Non-leaky augmentation; mirror images come from it, not from the data set."""
    return change(
        config_e(shape, family, column),
        augment=AugmentConfig(probability=family.augment_probability),
        denoiser__network__augment_dim=NUM_AUGMENT_LABELS,
        xflip=False,
    )


LADDER: dict[str, Callable[[DataShape, Family, str], TrainingConfig]] = dict(
    zip(LETTERS, (config_a, config_b, config_c, config_d, config_e, config_f), strict=True)
)


def imagenet64_adm(shape: DataShape) -> TrainingConfig:
    """ImageNet-64, ADM network, trained from scratch with everything of the paper (Table 7, last column)."""
    network = ADM(
        img_resolution=shape.resolution,
        img_channels=shape.channels,
        label_dim=shape.num_classes,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
        dropout=0.10,
    )
    return TrainingConfig(
        denoiser=DenoiserConfig(network=network),
        optimizer=OptimizerConfig(lr=1e-4, ramp_kimg=10_000.0),
        ema=EmaConfig(halflife_kimg=50_000.0),
        batch_size=4096,
        total_kimg=2_500_000.0,
        checkpoint_kimg=2_500.0,
        precision="fp16",
        loss_scale=100.0,
    )
