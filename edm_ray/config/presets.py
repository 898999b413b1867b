"""Named starting points. A preset is a function of the data set's shape, so the network always fits the data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

from edm_ray.config import recipes
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import DDPMpp
from edm_ray.config.preconditioning import EDMPreconditioning
from edm_ray.config.shape import DataShape
from edm_ray.config.training import AugmentConfig, EmaConfig, OptimizerConfig, TrainingConfig
from edm_ray.errors import InputError, nearest


def digits(shape: DataShape) -> TrainingConfig:
    """Small DDPM++ for 8x8 digits: readable samples after 64,000 images, minutes on two CPU cores."""
    network = DDPMpp(
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
        denoiser=DenoiserConfig(network=network, preconditioning=EDMPreconditioning(sigma_data=0.75)),
        optimizer=OptimizerConfig(lr=2e-3, ramp_kimg=2.0),
        ema=EmaConfig(halflife_kimg=4.0),
        batch_size=128,
        total_kimg=64.0,
        tick_kimg=3.2,
        checkpoint_kimg=6.4,
    )


def tiny(shape: DataShape) -> TrainingConfig:
    """Seconds on one core: for tests, and to see whether a set-up works at all."""
    network = DDPMpp(
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


def small_32(shape: DataShape) -> TrainingConfig:
    """Small DDPM++ for 32x32 images with augmentation: an hour on two CPU cores, minutes on a GPU."""
    network = DDPMpp(
        img_resolution=shape.resolution,
        img_channels=shape.channels,
        label_dim=shape.num_classes,
        augment_dim=recipes.NUM_AUGMENT_LABELS,
        model_channels=32,
        channel_mult=(1, 2, 2),
        num_blocks=1,
        attn_resolutions=(shape.resolution // 4,),
        dropout=0.0,
    )
    return TrainingConfig(
        denoiser=DenoiserConfig(network=network),
        optimizer=OptimizerConfig(lr=1e-3, ramp_kimg=2.0),
        ema=EmaConfig(halflife_kimg=4.0),
        augment=AugmentConfig(probability=0.12),
        batch_size=64,
        total_kimg=100.0,
        tick_kimg=1.024,
        checkpoint_kimg=2.048,
    )


def small_64(shape: DataShape) -> TrainingConfig:
    """Small DDPM++ for 64x64 images with augmentation: hours on two CPU cores, minutes on a GPU."""
    small = small_32(shape)
    network = small.denoiser.network
    assert isinstance(network, DDPMpp)
    deeper = dataclasses.replace(network, channel_mult=(1, 2, 2, 2), attn_resolutions=(shape.resolution // 8,))
    return dataclasses.replace(small, denoiser=DenoiserConfig(network=deeper))


def ddpmpp_32(shape: DataShape) -> TrainingConfig:
    """Your own 32x32 images: configuration F of CIFAR-10, VP column (start here)."""
    return recipes.config_f(shape, recipes.CIFAR10, "vp")


def ddpmpp_64(shape: DataShape) -> TrainingConfig:
    """Your own 64x64 images: configuration F of FFHQ-64, VP column (start here)."""
    return recipes.config_f(shape, recipes.FFHQ64, "vp")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named recipe, and the shape of the data it is described for (`edm-ray presets`)."""

    make: Callable[[DataShape], TrainingConfig]
    about: str
    example: DataShape
    gpus: int
    """What the paper trained it on (Table 7); 1 for small ones of ours."""


def _paper_presets() -> dict[str, Preset]:
    """Configurations A-F of the paper, both columns of Table 2, for its three data sets."""
    found = {}
    for prefix, family, classes in (
        ("cifar10-cond", recipes.CIFAR10, 10),
        ("cifar10-uncond", recipes.CIFAR10, 0),
        ("ffhq64", recipes.FFHQ64, 0),
        ("afhqv2-64", recipes.AFHQV2_64, 0),
    ):
        for column in ("vp", "ve"):
            for letter, config in recipes.LADDER.items():
                make = functools.partial(_paper, config, family, column, classes > 0)
                about = (config.__doc__ or "").splitlines()[0]
                example = DataShape(resolution=family.resolution, channels=3, num_classes=classes)
                found[f"{prefix}-{column}-{letter}"] = Preset(
                    make=make, about=about, example=example, gpus=4 if letter == "a" else 8
                )
    return found


def _paper(
    config: Callable[..., TrainingConfig], family: recipes.Family, column: str, conditional: bool, shape: DataShape
) -> TrainingConfig:
    if conditional and shape.num_classes == 0:
        raise InputError(f"the preset is class-conditional ({family.name}), but the data set has no classes")
    return config(shape if conditional else dataclasses.replace(shape, num_classes=0), family, column)


def _own(
    make: Callable[[DataShape], TrainingConfig], resolution: int, channels: int, classes: int, gpus: int = 1
) -> Preset:
    shape = DataShape(resolution=resolution, channels=channels, num_classes=classes)
    return Preset(make=make, about=(make.__doc__ or "").splitlines()[0], example=shape, gpus=gpus)


PRESETS: dict[str, Preset] = {
    "digits": _own(digits, 8, 1, 10),
    "tiny": _own(tiny, 8, 1, 10),
    "small-32": _own(small_32, 32, 3, 0),
    "small-64": _own(small_64, 64, 3, 0),
    "ddpmpp-32": _own(ddpmpp_32, 32, 3, 0, gpus=8),
    "ddpmpp-64": _own(ddpmpp_64, 64, 3, 0, gpus=8),
    **_paper_presets(),
    "imagenet64-adm": _own(recipes.imagenet64_adm, 64, 3, 1000, gpus=32),
}


DEFAULT = "ddpmpp-32"
"""Of a training for which none is named: the same on every machine, so that a run resumes anywhere."""
FOR_PEOPLE = ("digits", "small-32", "small-64", "ddpmpp-32", "ddpmpp-64")
"""What `edm-ray presets` lists first; the others are the paper's, and one for tests."""
MANY_IMAGES = 5_000
"""A large network learns fewer than so many pictures by heart: the smallest set of the paper (AFHQv2) has 15,803."""


def proposed(shape: DataShape, rows: int, device: str) -> str:
    """The preset for so many images of this shape on the CPU or on GPUs (device: cpu or cuda)."""
    if shape.resolution <= 16 and shape.channels == 1:
        return "digits"
    size = 32 if shape.resolution <= 32 else 64
    large = device == "cuda" and rows >= MANY_IMAGES and shape.resolution in (32, 64, 128)  # 16x16 is one of its levels
    return f"{'ddpmpp' if large else 'small'}-{size}"


def preset(name: str, shape: DataShape) -> TrainingConfig:
    """The named recipe for data of this shape. Raises InputError that names the nearest preset."""
    if name not in PRESETS:
        raise InputError(
            f"--preset {name}: unknown preset{nearest(name, PRESETS)}; `edm-ray presets` lists all {len(PRESETS)}"
        )
    return PRESETS[name].make(shape)
