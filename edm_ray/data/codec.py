"""From what is stored to what the denoiser sees, and from what it makes to pictures.

Pixels: uint8 [C, H, W], mapped to [-1, 1] and back. Latents: float16 or float32 [C, h, w], made to have mean 0 and
standard deviation ``scale`` in every channel (as Karras et al. 2024, appendix C, with scale = sigma_data = 0.5), and
turned into pictures by a named decoder. Caches and shards hold either as bytes: `view` gives the numbers.
"""

from __future__ import annotations

import numpy as np
import torch

from edm_ray.config.codec import Codec
from edm_ray.data.decoders import find_decoder
from edm_ray.data.format import Pixels
from edm_ray.errors import InputError

PICTURES_AT_ONCE = 64


def decode(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1] (0 -> -1, 255 -> 1)."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def encode(images: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] -> uint8; x * 127.5 + 128 truncated, as in the paper's protocol (rounding is part of FID)."""
    return (images.double() * 127.5 + 128.0).clip(0, 255).to(torch.uint8)


def view(rows: torch.Tensor, codec: Codec) -> torch.Tensor:
    """Stored bytes, uint8 [B, C, R, R * itemsize] -> the numbers they are, [B, C, R, R]."""
    return rows if codec.is_pixels else rows.view(getattr(torch, codec.dtype))


def to_training(stored: torch.Tensor, codec: Codec) -> torch.Tensor:
    """Numbers as stored [B, C, R, R] -> what the denoiser sees, float32."""
    if codec.is_pixels:
        return decode(stored)
    mean, factor = _constants(codec, stored)
    return (stored.to(torch.float32) - mean) * factor


def to_pictures(samples: torch.Tensor, codec: Codec) -> torch.Tensor:
    """What the denoiser makes, float [B, C, R, R] -> uint8 [B, 1 or 3, H, H].

    Raises InputError when the decoder is not installed, or what it gives are not pictures.
    """
    if codec.is_pixels:
        return encode(samples)
    mean, factor = _constants(codec, samples)
    latents = (samples.double() / factor.double() + mean.double()).to(torch.float32)
    decoder = find_decoder(codec.decoder)
    try:
        images = decoder(latents)
    except InputError as error:
        raise InputError(f"decoder {codec.decoder!r} on latents {list(latents.shape)}: {error}") from error
    fits = isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point()
    if not (fits and len(images) == len(latents) and images.shape[1] in (1, 3) and images.shape[2] == images.shape[3]):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise InputError(
            f"decoder {codec.decoder!r} made {got} of latents {list(latents.shape)}; needed are floats "
            f"[{len(latents)}, 1 or 3, H, H] in [-1, 1]"
        )
    if not bool(torch.isfinite(images).all()):  # as uint8 they would pass for black pixels
        raise InputError(f"decoder {codec.decoder!r} made values that are not numbers (NaN or infinite)")
    return encode(images)


def stored_pictures(rows: Pixels, codec: Codec) -> Pixels:
    """Rows as stored, uint8 [N, C, R, R * itemsize] -> pictures uint8 [N, 1 or 3, H, H]."""
    if codec.is_pixels:
        return rows
    parts = []
    for first in range(0, len(rows), PICTURES_AT_ONCE):
        stored = view(torch.from_numpy(rows[first : first + PICTURES_AT_ONCE].copy()), codec)
        with torch.inference_mode():
            parts.append(to_pictures(to_training(stored, codec), codec).cpu().numpy())
    pictures: Pixels = np.concatenate(parts)
    return pictures


def _constants(codec: Codec, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """mean and scale / std, float32 [C, 1, 1] on the device of ``like``."""
    assert like.shape[1] == len(codec.mean), "latents have the channels of their codec"
    mean = torch.tensor(codec.mean, dtype=torch.float64)
    factor = codec.scale / torch.tensor(codec.std, dtype=torch.float64)
    return tuple(part.to(torch.float32)[:, None, None].to(like.device) for part in (mean, factor))  # type: ignore[return-value]
