"""A folder laid out as diffusers lays out its pipelines, for use without this package.

``unet/diffusion_pytorch_model.safetensors`` is the plain state dict (official names, float32) and ``unet/config.json``
all the numbers needed to rebuild the network. The network is not one of diffusers' classes, so ``from_pretrained``
does not build it: docs/import.md shows how the two files are read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.models.card import model_card
from edm_ray.models.weights import weights_bytes
from edm_ray.networks import build_denoiser
from edm_ray.storage.commit import commit

KIND = "edm_ray diffusers folder"
WEIGHTS, CONFIG = "unet/diffusion_pytorch_model.safetensors", "unet/config.json"


def plain_config(config: DenoiserConfig) -> dict[str, Any]:
    """The configuration with nothing left to look up: what a kind or Table 1 says is written out."""
    network = dataclasses.asdict(config.network)
    constants = dataclasses.asdict(config.preconditioning)
    preconditioning = {name: value for name, value in constants.items() if value is not None}
    with torch.device("meta"):
        denoiser = build_denoiser(config)
    for name in ("sigma_min", "sigma_max"):
        value = getattr(denoiser, name, None)
        if isinstance(value, float) and math.isfinite(value):
            preconditioning.setdefault(name, value)
    return {
        "_class_name": "EdmDenoiser",
        "_library": "edm_ray",
        "sample_size": config.network.img_resolution,
        "in_channels": config.network.img_channels,
        "out_channels": config.network.img_channels,
        "network": network,
        "preconditioning": preconditioning,
    }


def save_diffusers(
    uri: str, config: DenoiserConfig, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]
) -> None:
    """Write the folder (local or s3://); the same arguments give the same bytes."""
    text = json.dumps(plain_config(config), indent=2, sort_keys=True, allow_nan=False)
    files = [
        (CONFIG, text.encode()),
        (WEIGHTS, weights_bytes(state, {})),
        ("README.md", model_card(config, about, layout="diffusers").encode()),
    ]
    commit(uri, files, kind=KIND)
