"""Weights as safetensors whose bytes depend on the tensors and the metadata alone, and whether they fit a network."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch

from edm_ray.errors import IntegrityError
from edm_ray.storage.documents import shortened_error


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


def tensors_of(content: bytes, what: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file. Raises IntegrityError, which begins with ``what``, for anything else."""
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise IntegrityError(f"{what}: not a file of tensors (safetensors): {shortened_error(error)}") from error
    return tensors


def misfit(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor of a state dict that is missing, too much, or of another shape or type than the network's, with
    what is expected and what was found; None where all fit. Names may be foreign text: they are shown as ASCII."""
    if missing := sorted(expected.keys() - found.keys()):
        return f"tensor {missing[0]!r}: expected {_form(expected[missing[0]])}, it is missing ({len(missing)} in all)"
    if extra := sorted(found.keys() - expected.keys()):
        name = ascii(extra[0] if len(extra[0]) <= 120 else f"{extra[0][:117]}...")
        return f"tensor {name} {_form(found[extra[0]])} is not part of the network ({len(extra)} in all)"
    for name, tensor in expected.items():
        got = found[name]
        if got.shape != tensor.shape or got.dtype != tensor.dtype:
            return f"tensor {name!r}: expected {_form(tensor)}, found {_form(got)}"
    return None


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
