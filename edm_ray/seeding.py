"""Counter-based random numbers: every number is a function of what it is for, and nothing has to be carried along.

    number = f(seed, purpose, image, step, draw, element)

The generator is Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), written in int64
tensor operations, so the integers are the same on any device. ``image`` is an image's position in the training order or
its seed when sampling, so nothing depends on batch size, worker count or order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Noise = Callable[..., torch.Tensor]


def stream_key(purpose: str, seed: int = 0) -> int:
    """64-bit Philox key of one purpose (``"sigma"``, ``"latents"``, ...) under one run seed."""
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest(), "little")


def philox(counter: tuple[torch.Tensor, ...], key: int) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10: four int64 tensors holding 32-bit words -> four such tensors (broadcast together).

    The product of two 32-bit words wraps in int64, which leaves all 64 of its bits as they should be.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(key: int, images: torch.Tensor, count: int, step: int = 0, draw: int = 0) -> torch.Tensor:
    """``count`` 32-bit words for each image. images: int64 [B] -> int64 [B, count], each in [0, 2^32)."""
    if images.dtype != torch.int64 or images.ndim != 1:
        raise ValueError(f"images must be int64 [B], got {images.dtype} {tuple(images.shape)}")
    assert 0 <= step < 1 << 16 and 0 <= draw < 1 << 16
    images = images[:, None]
    block = torch.arange((count + 3) // 4, dtype=torch.int64, device=images.device)[None, :]
    where = torch.full_like(block, step << 16 | draw)
    out = philox((block, where, images & _MASK, (images >> 32) & _MASK), key)
    return torch.stack(torch.broadcast_tensors(*out), dim=-1).flatten(1)[:, :count]


def uniform(key: int, images: torch.Tensor, count: int, step: int = 0, draw: int = 0) -> torch.Tensor:
    """Uniform numbers strictly inside (0, 1): float64 [B, count], on a grid of 2^-32."""
    return (words(key, images, count, step, draw).double() + 0.5) * 2.0**-32


def normal(key: int, images: torch.Tensor, count: int, step: int = 0, draw: int = 0) -> torch.Tensor:
    """Unit normal numbers by Box-Muller: float64 [B, count]; at most 6.77 in magnitude."""
    u = uniform(key, images, 2 * ((count + 1) // 2), step, draw)
    radius, angle = torch.sqrt(-2.0 * torch.log(u[:, 0::2])), 2.0 * math.pi * u[:, 1::2]
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(1)[:, :count]


def image_noise(seeds: torch.Tensor, purpose: str, shape: tuple[int, ...], seed: int = 0) -> Noise:
    """Unit normal noise keyed by image seed.

    seeds: int64 [B], one per image; shape: of one image, e.g. (C, H, W).
    Returns ``noise(step, draw=0)`` -> float64 [B, *shape], the same for an image whatever else is in the batch.
    """
    key, count = stream_key(purpose, seed), math.prod(shape)

    def noise(step: int, draw: int = 0) -> torch.Tensor:
        return normal(key, seeds, count, step, draw).reshape(len(seeds), *shape)

    return noise
