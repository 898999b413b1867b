"""What a stored sample is: uint8 pixels, or latents that somebody's encoder made of pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edm_ray.errors import InputError

DTYPES = {"uint8": 1, "float16": 2, "float32": 4}
"""Bytes of a number as it is stored (little-endian)."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """The denoiser sees pixels / 127.5 - 1, or (latent - mean) / std * scale, channel by channel."""

    kind: str = "pixels"
    """pixels | latents."""
    dtype: str = "uint8"
    mean: tuple[float, ...] = ()
    """Latents: of each channel, over the whole data set, as stored."""
    std: tuple[float, ...] = ()
    scale: float = 0.5
    """Latents: standard deviation of what the denoiser sees: sigma_data."""
    decoder: str = ""
    """Latents: name of what makes pictures of them (`edm_ray.data.decoders`)."""

    def __post_init__(self) -> None:
        allowed = {"pixels": ("uint8",), "latents": ("float16", "float32")}
        if self.kind not in allowed:
            raise InputError(f"codec.kind={self.kind!r} is not allowed: {' or '.join(allowed)}")
        if self.dtype not in allowed[self.kind]:
            raise InputError(f"codec.dtype={self.dtype!r} is not allowed: {self.kind} are {allowed[self.kind]}")
        if self.kind == "pixels":
            return
        check_scale(self.scale, "codec.scale")
        if not self.decoder:
            raise InputError("codec.decoder is empty: latents need the name of what makes pictures of them")
        if not self.mean or len(self.mean) != len(self.std) or not all(map(math.isfinite, self.mean)):
            raise InputError(f"codec.mean={self.mean!r}, codec.std={self.std!r}: a finite number a channel is needed")
        for channel, std in enumerate(self.std):
            if not 0 < std < math.inf:
                raise InputError(f"codec.std={std!r} of channel {channel} is not allowed: greater than 0, finite")

    @property
    def is_pixels(self) -> bool:
        return self.kind == "pixels"

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype]


PIXELS = Codec()


def check_scale(scale: float, name: str) -> None:
    """A scale of latents is a standard deviation."""
    if not 0 < scale < math.inf:
        raise InputError(f"{name}={scale!r} is not allowed: greater than 0, finite (0.5: the usual sigma_data)")
