"""Weights as safetensors whose bytes depend on the tensors and the metadata alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
import torch


def weights_bytes(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: tensors on the CPU, ``metadata`` and "format": "pt" in its header.

    The library writes the metadata in random order; the header is written again with sorted keys.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content: bytes = safetensors.torch.save(plain)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = {"format": "pt", **metadata}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length :]))
