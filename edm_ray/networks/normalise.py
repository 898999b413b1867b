"""What stands between convolutions: group normalisation, the embedding that joins it, SiLU and dropout; scaled sums,
and the skips.

On a GPU with Triton, for images in channels_last, one kernel does each (`networks.kernels`); anywhere else, and under
torch.compile, which fuses by itself, it is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edm_ray.networks.backend import kernels_for, one_kernel
from edm_ray.networks.layers import Dropout, GroupNorm


@dataclass(frozen=True)
class Join:
    """How the embedding joins: added before the normalisation, or scale and shift after it; float [B or 1, C] each."""

    offset: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None


NOTHING = Join()


def normalise(
    norm: GroupNorm, x: torch.Tensor, join: Join = NOTHING, dropout: Dropout | None = None, silu: bool = True
) -> torch.Tensor:
    """dropout(silu(norm(x + offset) (1 + scale) + shift)): [B, C, H, W] -> the same shape.

    The kernel sums and computes in float32 and returns x's own type; PyTorch under autocast returns float32. In float32
    the two differ by rounding only, 2e-6 of the largest value in our tests.
    """
    if not fused(norm, x, dropout):
        return plain(norm, x, join, dropout, silu)
    rows = (len(x), x.shape[1])
    a, b = norm.weight[None], norm.bias[None]
    if join.scale is not None and join.shift is not None:
        gain = join.scale.float() + 1.0
        a, b = a * gain, b * gain + join.shift.float()
    offset = None if join.offset is None else join.offset.expand(rows)
    drops = dropout is not None and dropout.training and dropout.p > 0
    keys, p = (dropout.keys, dropout.p) if drops and dropout is not None else (None, 0.0)
    kernels = kernels_for(x)
    how = kernels.How(norm.num_groups, norm.eps, silu, p)
    y: torch.Tensor = kernels.Normalise.apply(x, offset, a.expand(rows), b.expand(rows), keys, how)
    return y


def plain(
    norm: GroupNorm, x: torch.Tensor, join: Join = NOTHING, dropout: Dropout | None = None, silu: bool = True
) -> torch.Tensor:
    """The same in PyTorch's own operations."""
    z: torch.Tensor = norm(x if join.offset is None else x + join.offset[:, :, None, None])
    if join.scale is not None and join.shift is not None:
        z = torch.addcmul(join.shift[:, :, None, None], z, join.scale[:, :, None, None] + 1.0)
    if silu:
        z = F.silu(z)
    return z if dropout is None else dropout(z)


def add_scaled(
    h: torch.Tensor, x: torch.Tensor, scale: float, biases: Sequence[torch.Tensor | None] = ()
) -> torch.Tensor:
    """scale (h + x + the sum of the biases): [B, C, H, W] each, biases [C] or None."""
    if one_kernel(h):
        given = [bias for bias in biases if bias is not None]
        y: torch.Tensor = kernels_for(h).AddScaled.apply(h, x.to(h), sum(given[1:], given[0]) if given else None, scale)
        return y
    for bias in biases:
        h = h if bias is None else h + bias[:, None, None]
    y = h + x
    if scale != 1.0:
        y.mul_(scale)  # in place: a sum keeps nothing for its gradient
    return y


def concatenate(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """The channels of both: [B, C, H, W] and [B, D, H, W] -> [B, C + D, H, W]."""
    if one_kernel(x) and one_kernel(skip) and x.dtype == skip.dtype:
        y: torch.Tensor = kernels_for(x).Concatenate.apply(x, skip)
        return y
    return torch.cat([x, skip], dim=1)


def fused(norm: GroupNorm, x: torch.Tensor, dropout: Dropout | None) -> bool:
    """Whether one kernel can do all of `normalise`: where masks are drawn, by keys, four at a time."""
    if dropout is not None and dropout.training and dropout.p > 0:
        if dropout.keys is None or x.shape[1] // norm.num_groups % 4:
            return False
    return one_kernel(x)
