"""What a stored sample is: uint8 pixels [C, H, W], mapped to [-1, 1] for the denoiser and back."""

from __future__ import annotations

import torch


def decode(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1] (0 -> -1, 255 -> 1)."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def encode(images: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] -> uint8; x * 127.5 + 128 truncated, as in the paper's protocol (rounding is part of FID)."""
    return (images.double() * 127.5 + 128.0).clip(0, 255).to(torch.uint8)
