"""List the training presets, each shown for the data it is meant for."""

from __future__ import annotations

from dataclasses import dataclass

from edm_ray.cli.console import say
from edm_ray.config.presets import PRESETS, DataShape

_SHAPES = {"digits": (8, 1, 10), "tiny": (8, 1, 10), "ddpmpp-32": (32, 3, 0), "ddpmpp-64": (64, 3, 0)}


@dataclass(frozen=True)
class Args:
    pass


def run(args: Args) -> None:
    import torch

    from edm_ray.networks.build import build_network

    for name, make in PRESETS.items():
        resolution, channels, classes = _SHAPES[name]
        config = make(DataShape(resolution=resolution, channels=channels, num_classes=classes))
        with torch.device("meta"):
            network = build_network(config.denoiser.network)
        count = sum(parameter.numel() for parameter in network.parameters())
        say(
            f"{name:<10} {count:>11,} parameters at {resolution}x{resolution}x{channels}, {classes} classes; "
            f"batch {config.batch_size}, {config.total_kimg:g} kimg. {make.__doc__}"
        )
