"""Dropout masks that are a function of (seed, image position, layer, element): the same for any number of workers.

Philox, which everything else random comes from, would cost more than the convolutions around it: a layer needs one
number an element. So the images' keys come from Philox, and the elements from a 64-bit finaliser of key + counter
(SplitMix64, Steele et al. 2014), 16 bits an element. On a CPU that is faster than torch's own dropout.
"""

from __future__ import annotations

import torch
from torch import nn

STEP = -0x61C8864680B583EB  # 2^64 / golden ratio, odd, as int64
MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that take keys, in the order of the network."""
    return [module for module in network.modules() if hasattr(module, "keys") and hasattr(module, "p")]


def words_needed(network: nn.Module) -> int:
    """How many 32-bit words an image `key_dropout` takes."""
    return 2 * len(dropout_layers(network))


def key_dropout(network: nn.Module, words: torch.Tensor | None) -> None:
    """Key the masks of the next forward pass. words: int64 [B, words_needed] of 32 bits each; None = no keys."""
    for index, layer in enumerate(dropout_layers(network)):
        keys = None if words is None else (words[:, 2 * index] << 32) | words[:, 2 * index + 1]
        layer.keys = keys  # type: ignore[assignment]


def threshold_of(p: float) -> int:
    """Of 65,536 equally likely draws, how many drop an element."""
    return round(p * 65536)


def keyed_mask(x: torch.Tensor, keys: torch.Tensor, p: float) -> torch.Tensor:
    """0 where an element is dropped, else the scale that keeps the mean: like x [B, ...], in its dtype and layout.

    keys: int64 [B]. p is rounded to a multiple of 2^-16. Elements are counted in the order they lie in memory.
    """
    count = x[0].numel()
    blocks = torch.arange((count + 3) // 4, dtype=torch.int64, device=x.device)
    z = keys[:, None] + blocks * STEP
    for shift, factor in MIX:
        # torch shifts arithmetically: the mask makes it logical.
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
    threshold = threshold_of(p)
    draws = z.view(torch.int16)
    if count % 4:
        draws = draws[:, :count]
    # 1 from the threshold on, else -1, exact in float32; on a CPU faster than comparing, which writes booleans.
    kept = draws.to(torch.float32).sub_(threshold - 32768 - 0.5).sign_().add_(1.0)
    kept = kept.mul_(32768 / (65536 - threshold)).to(x.dtype)
    if x.ndim == 4 and not x.is_contiguous():
        batch, channels, height, width = x.shape
        kept = kept.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    else:
        kept = kept.reshape(x.shape)
    return kept
