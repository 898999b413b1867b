"""Where a worker computes, and what its device is asked for, so that the host never waits and fp32 means fp32."""

from __future__ import annotations

import contextlib
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
    sums of 16-bit products always in fp32 (torch lets cuBLAS split them in 16 bits); and let cuDNN try its algorithms.

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
    torch.backends.cudnn.benchmark = device.type == "cuda"
