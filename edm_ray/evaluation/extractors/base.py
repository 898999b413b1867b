"""What every feature extractor is: a network with its weights, a fixed-point grid, and one padded micro-batch shape."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edm_ray.errors import InputError
from edm_ray.evaluation.moments import Array

# Part of every identity: raise it when the features of the same weights change.
CODE_VERSION = 1

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(eq=False)
class Extractor:
    """One extractor with its weights loaded, on one device."""

    name: str
    network: Network
    dim: int
    scale_bits: int
    micro_batch: int
    weights_sha256: str
    accepts: Network
    """uint8 images as given -> as the network takes them, or InputError."""
    head: Network | None = None
    """Features, float64 on the host -> logits of classes, for the Inception Score."""
    device: str = "cpu"

    @property
    def identity(self) -> str:
        """Hash of all that decides the features (up to the rounding of the device, which a chunk's identity names)."""
        parts = (self.name, self.weights_sha256, self.dim, self.scale_bits, self.micro_batch, CODE_VERSION)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def has_head(self) -> bool:
        return self.head is not None

    @torch.inference_mode()
    def extract(self, images: torch.Tensor) -> npt.NDArray[np.int32]:
        """uint8 [B, C, H, W] -> int32 [B, dim]: features times 2^scale_bits, rounded.

        The network always sees one padded micro-batch shape, so a row does not depend on what else is in the batch.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(f"images must be uint8 [B, C, H, W], got {images.dtype} {tuple(images.shape)}")
        rows = []
        with _full_precision(self.device):
            for part in self.accepts(images).split(self.micro_batch):
                missing = self.micro_batch - len(part)
                padded = torch.nn.functional.pad(part.to(self.device), (0, 0, 0, 0, 0, 0, 0, missing))
                values = self.network(padded)[: len(part)].to(torch.float64)
                if not bool(torch.isfinite(values).all()):
                    raise FloatingPointError(f"extractor {self.name}: features are not finite")
                if float(values.abs().max()) * 2.0**self.scale_bits >= 2.0**31 - 1:
                    raise FloatingPointError(
                        f"extractor {self.name}: a feature of {float(values.abs().max()):g} does not fit 32 bits"
                    )
                rows.append(torch.round(values * 2.0**self.scale_bits).to(torch.int32).cpu().numpy())
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.int32)

    @torch.inference_mode()
    def logits(self, features: npt.NDArray[np.int32]) -> Array:
        """Class logits, float64 [n, classes], of int32 features [n, dim]: chunks need not carry them."""
        if self.head is None:
            raise InputError(f"extractor {self.name} has no classes; the Inception Score needs inception or digits")
        values = torch.from_numpy(features).to(torch.float64) / 2.0**self.scale_bits
        result: Array = self.head(values).numpy()
        return result


def _full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """cuDNN would compute convolutions in TF32, which moves features by a thousandth."""
    if not device.startswith("cuda"):
        return contextlib.nullcontext()
    manager: contextlib.AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return manager
