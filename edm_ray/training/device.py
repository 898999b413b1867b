"""Where a worker computes, and what its device is asked for, so that the host never waits and fp32 means fp32."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edm_ray.config.training import TrainingConfig
from edm_ray.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where this process stands among the workers."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor to the device without waiting: from pageable memory, the copy would wait for all work before it."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many threads for every sum in this context, and what the process had after it.

    torch's own choice is the number of cores, and cuts long sums into as many parts: without this, the bits of a run
    would depend on the machine, and on whether Ray (which gives a worker one thread) started it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_precision(config: TrainingConfig, device: torch.device) -> None:
    """Set the process's matrix and convolution precision: TF32 on a GPU only where asked (torch has it on for cuDNN),
    sums of 16-bit products always in fp32 (torch lets cuBLAS split them in 16 bits); deterministic kernels on a GPU.

    Raises InputError where the device cannot do what is asked.
    """
    if config.precision in ("fp16", "tf32") and device.type != "cuda":
        raise InputError(
            f"precision={config.precision!r} is not allowed on {device.type}: fp32 or bf16; it needs --device cuda"
        )
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError("precision='bf16' is not allowed: this GPU has no bf16; give fp32 or fp16")
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    if device.type == "cuda":
        _set_determinism(config.deterministic)


def _set_determinism(on: bool) -> None:
    """On: kernels whose sums have one order, chosen by rule. Off: the fastest, chosen by timing; bits change from run
    to run. cuBLAS takes its part from the environment, before it is first used."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = not on, on
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Of attention, the flash kernel and plain products have one order.
    torch.backends.cuda.enable_cudnn_sdp(not on)
    torch.backends.cuda.enable_mem_efficient_sdp(not on)
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a help for debugging that costs a pass over memory
