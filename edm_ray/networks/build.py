"""From a configuration to a network with its initial weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edm_ray.config.schema import CONSTANTS, DenoiserConfig, NetworkConfig
from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.errors import InputError
from edm_ray.networks.dhariwal_unet import DhariwalUNet
from edm_ray.networks.song_unet import SongUNet
from edm_ray.seeding import stream_key

NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
"""What makes NCSN++ of the class whose defaults are DDPM++."""
SONG_CHOICES = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")
"""Fields that override what a kind says."""


def build_network(config: NetworkConfig, seed: int = 0, out_channels: int | None = None) -> nn.Module:
    """F_theta on torch's default device: forward(x, noise_labels, class_labels=None, augment_labels=None).

    The weights are a function of ``config`` and ``seed`` alone: they are drawn on the CPU whatever the device, and the
    global generators are left as they were. Under ``torch.device("meta")`` there is nothing to draw.
    out_channels: channels of the output where they are not those of the images.
    """
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device.type == "meta" else "cpu"):
        # Not torch.manual_seed: that would reseed the CUDA generators too.
        torch.default_generator.manual_seed(stream_key("weights", seed) >> 1)
        try:
            network = _construct(config, config.img_channels if out_channels is None else out_channels)
        except InputError as error:
            if str(error).startswith("network."):
                raise
            raise InputError(
                f"network.model_channels={config.model_channels!r} with "
                f"network.channel_mult={config.channel_mult!r} is not allowed: {error}"
            ) from None
    return network.to(device)


def _construct(config: NetworkConfig, out_channels: int) -> nn.Module:
    arguments: dict[str, Any] = {
        "img_resolution": config.img_resolution,
        "in_channels": config.img_channels,
        "out_channels": out_channels,
        "label_dim": config.label_dim,
        "augment_dim": config.augment_dim,
        "model_channels": config.model_channels,
        "channel_mult": tuple(config.channel_mult),
        "channel_mult_emb": config.channel_mult_emb,
        "num_blocks": config.num_blocks,
        "attn_resolutions": tuple(config.attn_resolutions),
        "dropout": config.dropout,
        "label_dropout": config.label_dropout,
    }
    if config.kind == "adm":
        return DhariwalUNet(**arguments)
    chosen = {name: getattr(config, name) for name in SONG_CHOICES if getattr(config, name) is not None}
    return SongUNet(**arguments, **{**(NCSNPP if config.kind == "ncsnpp" else {}), **chosen})


def build_denoiser(config: DenoiserConfig, seed: int = 0) -> nn.Module:
    """The preconditioned denoiser D around ``build_network`` with the same ``seed``; the network is ``.model``."""
    kind = config.preconditioning.kind
    if kind not in PRECONDITIONERS:
        raise InputError(f"preconditioning.kind={kind!r} is not allowed: {', '.join(PRECONDITIONERS)}")
    # iDDPM networks also predict a variance, in as many channels again, which the denoiser does not use.
    out_channels = config.network.img_channels * (2 if kind == "iddpm" else 1)
    network = build_network(config.network, seed, out_channels)
    given = {name: getattr(config.preconditioning, name) for name in CONSTANTS}
    arguments = {name: value for name, value in given.items() if value is not None}
    if kind == "edm":
        arguments["sigma_data"] = config.preconditioning.sigma_data
    return PRECONDITIONERS[kind](network, **arguments)
