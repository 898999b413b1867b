"""What kind of device images are made on: equal kinds give equal bits, others need not (docs/evaluation.md)."""

from __future__ import annotations

import platform

import torch


def kind_of(device: str) -> str:
    """A GPU's name, or a CPU's architecture and the widest instructions that torch uses of it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
