"""Whose kernels a tensor takes: ours in Triton, or PyTorch's own."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType

import torch

_PLANNING: ContextVar[bool] = ContextVar("planning", default=False)


def one_kernel(x: torch.Tensor) -> bool:
    """Whether our kernels take this tensor: on a GPU, channels_last. torch.compile fuses by itself."""
    if x.device.type == "meta":
        return _PLANNING.get()
    if x.device.type != "cuda" or torch.compiler.is_compiling() or not has_triton():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def kernels_for(x: torch.Tensor) -> ModuleType:
    """The module of the kernels, or of their shapes alone for tensors without numbers."""
    return importlib.import_module(f"edm_ray.networks.{'sketch' if x.device.type == 'meta' else 'kernels'}")


@contextlib.contextmanager
def planned_for_a_gpu() -> Iterator[None]:
    """Within it, a network on the meta device keeps for its backward pass what it keeps on a GPU."""
    token = _PLANNING.set(True)
    try:
        yield
    finally:
        _PLANNING.reset(token)


@functools.cache
def has_triton() -> bool:
    """PyTorch for NVIDIA GPUs on Linux brings it."""
    return importlib.util.find_spec("triton") is not None
