"""D as a model gives it: a preconditioned network with its codec, its device and the model that guides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.network import NetworkConfig
from edm_ray.diffusion.preconditioning import Preconditioned
from edm_ray.networks.build import with_weights_in
from edm_ray.networks.replay import Replay


class ModelDenoiser:
    """A `Denoiser` that knows what it makes. What it computes never changes after it is built."""

    def __init__(
        self,
        module: Preconditioned,
        network: NetworkConfig,
        codec: Codec = PIXELS,
        guide: ModelDenoiser | None = None,
        source: Any = None,
        empty_classes: Sequence[int] = (),
    ) -> None:
        """module: a preconditioned network in evaluation mode on its device; network: what it takes and makes; source:
        the `Model` that it was built from; empty_classes: no picture was trained on, so they are not drawn."""
        self.empty_classes = tuple(empty_classes)
        self.module, self.codec, self.guide, self.source = module, codec, guide, source
        self.recorded: dict[torch.dtype | None, Replay] | None = None
        self.sigma_min, self.sigma_max = float(module.sigma_min), float(module.sigma_max)
        self.label_dim = network.label_dim
        self.shape = (network.img_channels, network.img_resolution, network.img_resolution)
        """(C, H, W) of one sample."""

    def record(self) -> ModelDenoiser:
        """From now on the network's calls on a GPU are recorded and replayed, where nothing needs a gradient. Returns
        itself. Not for modules of the user's own: they may read numbers from the device."""
        if self.device.type == "cuda":
            self.recorded = {}
        return self

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.module.round_sigma(sigma)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, C, H, W], sigma [B] or a scalar, class_labels one-hot -> D float32 [B, C, H, W]."""
        denoised: torch.Tensor = self._call()(x, sigma, class_labels)
        return denoised

    def _call(self) -> Callable[..., torch.Tensor]:
        """The network, or its recording in the precision that autocast asks for."""
        if self.recorded is None or torch.is_grad_enabled():
            return self.module
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        if dtype not in self.recorded:
            with torch.inference_mode(False):
                self.recorded[dtype] = Replay(self.module if dtype is None else with_weights_in(self.module, dtype))
        return self.recorded[dtype]
