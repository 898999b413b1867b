"""What a network costs, computed from its graph on the meta device: nothing is allocated, nothing is run."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import UNetConfig
from edm_ray.config.preconditioning import EDMPreconditioning, IDDPMPreconditioning
from edm_ray.networks.backend import planned_for_a_gpu
from edm_ray.networks.build import build_denoiser
from edm_ray.networks.dropout import key_dropout, words_needed


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """Per image, in training mode, fp32."""

    parameters: int
    forward_macs: int
    """Multiply-adds of one forward pass (convolutions, matrix products, attention); backward takes about twice that."""
    saved_bytes: int
    """Activations kept for the backward pass."""
    device: str
    """On which; kernels differ in what they keep."""


class _Flops(TorchDispatchMode):
    """Adds up torch's own formulas of the operations. (FlopCounterMode also follows the modules: twice the time.)"""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def network_cost(config: DenoiserConfig, device: str = "cpu") -> NetworkCost:
    """Count one image's forward pass with torch's own formulas and saved-tensor hooks. device: cpu or cuda; what is
    kept depends on it."""
    # Preconditionings differ in the width of the output at most, and dropout of any strength keeps one mask.
    network, iddpm = config.network, isinstance(config.preconditioning, IDDPMPreconditioning)
    if isinstance(network, UNetConfig):
        network = dataclasses.replace(network, dropout=0.5 * (network.dropout > 0))
    preconditioning = IDDPMPreconditioning() if iddpm else EDMPreconditioning()
    return _cost(DenoiserConfig(network=network, preconditioning=preconditioning), device)


@lru_cache(maxsize=64)
def _cost(config: DenoiserConfig, device: str) -> NetworkCost:
    network = config.network
    kept_there = planned_for_a_gpu() if device == "cuda" else contextlib.nullcontext()
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

    counter = _Flops()
    with kept_there, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        key_dropout(denoiser, torch.empty(1, words_needed(denoiser), dtype=torch.int64, device="meta"))
        denoiser(images, sigma)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
        forward_macs=counter.total // 2,
        saved_bytes=sum(storage.nbytes() for storage in kept.values()),
        device=device,
    )
