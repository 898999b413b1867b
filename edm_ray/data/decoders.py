"""What makes pictures of latents, by name: the built-in ``haar``, and what is installed on this machine.

An installed package offers one by an entry point of the group ``edm_ray.decoders``: a callable that takes float32
latents [B, C, h, w], on the device where sampling runs, and gives floats [B, 1 or 3, H, H] in [-1, 1]. Each picture
must depend on its own latent alone. Nothing is ever loaded from a data set or a model directory: they hold a name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import torch

from edm_ray.errors import InputError, nearest

GROUP = "edm_ray.decoders"
Decoder = Callable[[torch.Tensor], torch.Tensor]


def haar_encode(images: torch.Tensor) -> torch.Tensor:
    """The orthonormal 2x2 Haar transform (Haar 1910): [B, C, H, W] -> [B, 4 C, H / 2, W / 2], four bands of each
    channel in turn: sum, left - right, top - bottom, cross, each over 2. Raises InputError for an odd side."""
    if images.shape[2] % 2 or images.shape[3] % 2:
        raise InputError(
            f"haar needs an even side, got {images.shape[3]}x{images.shape[2]}; crop or pad to an even one"
        )
    a, b = images[:, :, 0::2, 0::2], images[:, :, 0::2, 1::2]
    c, d = images[:, :, 1::2, 0::2], images[:, :, 1::2, 1::2]
    bands = torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=2) / 2
    return bands.flatten(1, 2)


def haar_decode(latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `haar_encode`: [B, 4 C, h, w] -> [B, C, 2 h, 2 w]; its 4x4 matrix is its own inverse."""
    batch, channels, height, width = latents.shape
    if channels not in (4, 12):
        raise InputError(f"haar needs latents of 4 or 12 channels (of grey or colour pictures), got {channels}")
    mean, right, down, cross = latents.reshape(batch, channels // 4, 4, height, width).unbind(2)
    images = latents.new_empty(batch, channels // 4, 2 * height, 2 * width)
    images[:, :, 0::2, 0::2] = (mean + right + down + cross) / 2
    images[:, :, 0::2, 1::2] = (mean - right + down - cross) / 2
    images[:, :, 1::2, 0::2] = (mean + right - down - cross) / 2
    images[:, :, 1::2, 1::2] = (mean - right - down + cross) / 2
    return images


BUILT_IN: dict[str, Decoder] = {"haar": haar_decode}
_loaded: dict[str, Decoder] = {}


def find_decoder(name: str) -> Decoder:
    """Raises InputError for a name that nothing here has, listing what there is and how to add one."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name not in _loaded:
        point = _entry_point(name)
        try:
            found = point.load()
        except Exception as error:  # other people's code
            raise InputError(f"decoder {name!r} ({point.value}) cannot be imported: {error}") from error
        if not callable(found):
            raise InputError(f"decoder {name!r} ({point.value}) is a {type(found).__name__}, not something to call")
        _loaded[name] = found
    return _loaded[name]


def decoder_version(name: str) -> str:
    """What, beside the name, says which decoder it is: the package that it comes from, and its version."""
    if name in BUILT_IN:
        return f"built-in {name} 1"
    point = _entry_point(name)
    package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown"
    return f"{package} {point.value}"


def _entry_point(name: str) -> EntryPoint:
    there = {point.name: point for point in entry_points(group=GROUP)}
    if name not in there:
        have = [*BUILT_IN, *there]
        raise InputError(
            f"decoder {name!r} is not installed here{nearest(name, have)}; there are: {', '.join(have)}. A package "
            f'adds one by [project.entry-points."{GROUP}"] {name} = "module:callable" in its pyproject.toml'
        )
    return there[name]
