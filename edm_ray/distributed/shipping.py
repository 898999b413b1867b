"""What travels to every actor: weights as NumPy arrays in Ray's object store, one copy per node, read in place.

(Bytes would be copied into every process; a torch tensor takes twice as long to put and is copied too.)
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

from edm_ray.config.codec import PIXELS, Codec
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model, network_with
from edm_ray.storage.s3 import PATIENCE


@dataclass(frozen=True, kw_only=True)
class ShippedModel:
    """A model's configuration, and its tensors as bytes with their types and shapes (NumPy has no bfloat16)."""

    uri: str
    config: DenoiserConfig
    tensors: dict[str, tuple[np.ndarray, torch.dtype, tuple[int, ...]]]
    codec: Codec = PIXELS
    guide: ShippedModel | None = None
    network: torch.nn.Module | None = None
    """The user's own module: it travels as Ray pickles it, so its class must be importable on the workers, or be
    defined in the script that was started."""
    empty_classes: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: Model) -> ShippedModel:
        state = safetensors.torch.load(model.weights)
        flat = {name: tensor.contiguous().flatten().view(torch.uint8).numpy() for name, tensor in state.items()}
        tensors = {name: (flat[name], tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        guide = None if model.guide is None else cls.of(model.guide)
        return cls(
            uri=model.uri,
            config=model.config,
            tensors=tensors,
            codec=model.codec,
            guide=guide,
            network=model.network,
            empty_classes=model.empty_classes,
        )

    def denoiser(self, device: str) -> ModelDenoiser:
        state = {}
        for name, (content, dtype, shape) in self.tensors.items():
            # frombuffer warns that the store's memory is read-only; nothing writes to it, the network copies it.
            view = torch.from_numpy(content) if content.flags.writeable else _read_only(content)
            state[name] = view.view(dtype).reshape(shape)
        module = network_with(self.config, state, self.uri, self.network).to(device)
        guide = None if self.guide is None else self.guide.denoiser(device)
        return ModelDenoiser(module, self.config.network, self.codec, guide, empty_classes=self.empty_classes)


def _read_only(content: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(content)


def environment() -> dict[str, Any]:
    """The S3 endpoint, and how long storage may be away, go with actors and tasks; credentials never do (nodes have
    their own)."""
    said = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", PATIENCE) if os.environ.get(name)}
    return {"env_vars": said} if said else {}
