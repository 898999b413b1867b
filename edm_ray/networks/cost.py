"""What a network costs, computed from its graph on the meta device: nothing is allocated, nothing is run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from edm_ray.config.schema import DenoiserConfig
from edm_ray.networks.build import build_denoiser


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """Per image, in training mode, fp32."""

    parameters: int
    forward_macs: int
    """Multiply-adds of one forward pass (convolutions, matrix products, attention); backward takes about twice that."""
    saved_bytes: int
    """Activations kept for the backward pass."""


@lru_cache(maxsize=64)
def network_cost(config: DenoiserConfig) -> NetworkCost:
    """Count one image's forward pass with torch's own flop counter and saved-tensor hooks."""
    network = config.network
    with torch.device("meta"):
        denoiser = build_denoiser(config).train()
        images = torch.empty(1, network.img_channels, network.img_resolution, network.img_resolution)
        sigma = torch.empty(1)
    own = {parameter.untyped_storage()._cdata for parameter in denoiser.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        denoiser(images, sigma)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
        forward_macs=counter.get_total_flops() // 2,
        saved_bytes=sum(storage.nbytes() for storage in kept.values()),
    )
