"""What stands between convolutions, in Triton: forward, and backward. `networks.normalise` has the same in PyTorch.

`Normalise` (`networks.normalise_kernel`): group normalisation with the embedding, SiLU and dropout.
`AddScaled`: y = s (h + x + bias), one pass where PyTorch takes three, with the bias of the convolutions before it.
`Resample`: 2x2 means, and their transpose.
`Concatenate`: the channels of two images, one after the other.

Sums are in float32 and in a fixed order, so equal inputs give equal bits. Images lie in memory as [B, H W, C]
(channels_last).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edm_ray.networks.normalise_kernel import How, Normalise

__all__ = ["AddScaled", "Concatenate", "How", "Normalise", "Resample"]

CHANNELS = 64
"""Channels of a program, about: 128 bytes of a pixel in 16 bits."""
TILE = 4096
"""Elements that a program holds at once."""

Tensor = torch.Tensor


@triton.jit
def _add_scaled(h, x, bias, y, scale, count, C, CB: tl.constexpr, ROWS: tl.constexpr, BIAS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    mask = (row < count)[:, None] & (c < C)[None, :]
    at = row[:, None] * C + c[None, :]
    value = tl.load(h + at, mask=mask, other=0.0).to(tl.float32) + tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    tl.store(y + at, (value * scale).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _scaled(dy, dx, part, scale, count, C, CB: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr):
    """dx = s dy; part: its sums over the pixels of each program."""
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    total = tl.zeros([ROWS, CB], tl.float32)
    for tile in range(TILES):
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & (c < C)[None, :]
        at = row[:, None] * C + c[None, :]
        value = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32) * scale
        total += value
        tl.store(dx + at, value.to(dx.dtype.element_ty), mask=mask)
    tl.store(part + tl.program_id(0) * C + c, tl.sum(total, axis=0), mask=c < C)


@triton.jit
def _spread(small, large, scale, count, H, W, C, CB: tl.constexpr, ROWS: tl.constexpr):
    """large [2H, 2W]: each pixel is scale times that of small [H, W] which covers it. Rows are pixels of large."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    mask = (row < count)[:, None] & (c < C)[None, :]
    j, i, n = row % (2 * W) // 2, row // (2 * W) % (2 * H) // 2, row // (4 * H * W)
    source = ((n * H + i) * W + j)[:, None] * C + c[None, :]
    value = tl.load(small + source, mask=mask, other=0.0).to(tl.float32) * scale
    tl.store(large + row[:, None] * C + c[None, :], value.to(large.dtype.element_ty), mask=mask)


@triton.jit
def _gather(large, small, scale, count, H, W, C, CB: tl.constexpr, ROWS: tl.constexpr):
    """small [H, W]: each pixel is scale times the sum of the four of large [2H, 2W] that it covers."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    mask = (row < count)[:, None] & (c < C)[None, :]
    j, i, n = row % W, row // W % H, row // (H * W)
    corner = ((n * 2 * H + 2 * i) * 2 * W + 2 * j)[:, None] * C + c[None, :]
    total = tl.load(large + corner, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(large + corner + C, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(large + corner + 2 * W * C, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(large + corner + 2 * W * C + C, mask=mask, other=0.0).to(tl.float32)
    tl.store(small + row[:, None] * C + c[None, :], (total * scale).to(small.dtype.element_ty), mask=mask)


@triton.jit
def _join(a, b, y, count, A, B, CB: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr):
    """y: the channels of a, then those of b; with SPLIT a and b from y. Rows are pixels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    here = (row < count)[:, None]
    of_a, of_b = here & (c < A)[None, :], here & (c >= A)[None, :] & (c < A + B)[None, :]
    at_a, at_b = a + row[:, None] * A + c[None, :], b + row[:, None] * B + (c - A)[None, :]
    at_y = y + row[:, None] * (A + B) + c[None, :]
    if SPLIT:
        value = tl.load(at_y, mask=of_a | of_b, other=0.0)
        tl.store(at_a, value, mask=of_a)
        tl.store(at_b, value, mask=of_b)
    else:
        first, second = tl.load(at_a, mask=of_a, other=0.0), tl.load(at_b, mask=of_b, other=0.0)
        tl.store(at_y, tl.where((c < A)[None, :], first, second), mask=of_a | of_b)


def _empty(like: Tensor, channels: int) -> Tensor:
    shape = (len(like), channels, *like.shape[2:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _joined(a: Tensor, b: Tensor, y: Tensor, split: bool) -> None:
    first, second = a.shape[1], b.shape[1]
    count, rows = a.numel() // first, TILE // CHANNELS
    grid = (triton.cdiv(count, rows), triton.cdiv(first + second, CHANNELS))
    _join[grid](a, b, y, count, first, second, CB=CHANNELS, ROWS=rows, SPLIT=split)


class Concatenate(torch.autograd.Function):
    """a [B, A, H, W] and b [B, C, H, W], channels_last and of one type -> [B, A + C, H, W]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.channels = (a.shape[1], b.shape[1])
        y = _empty(a, sum(ctx.channels))
        _joined(a, b, y, split=False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        dy = dy.contiguous(memory_format=torch.channels_last)
        da, db = (_empty(dy, channels) for channels in ctx.channels)
        _joined(da, db, dy, split=True)
        return da, db


def _resampled(x: Tensor, up: bool, scale: float) -> Tensor:
    batch, channels, height, width = x.shape
    size = (2 * height, 2 * width) if up else (height // 2, width // 2)
    y = torch.empty((batch, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    small = (height, width) if up else size
    count, rows = batch * size[0] * size[1], TILE // CHANNELS
    grid = (triton.cdiv(count, rows), triton.cdiv(channels, CHANNELS))
    (_spread if up else _gather)[grid](x, y, scale, count, *small, channels, CB=CHANNELS, ROWS=rows)
    return y


class Resample(torch.autograd.Function):
    """Twice as large by copying each pixel, or half as large by means of four: [B, C, H, W] channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: bool) -> Tensor:
        ctx.up = up
        return _resampled(x, up, 1.0 if up else 0.25)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        dy = dy.contiguous(memory_format=torch.channels_last)
        return _resampled(dy, not ctx.up, 1.0 if ctx.up else 0.25), None


class AddScaled(torch.autograd.Function):
    """h and x [B, C, H, W] channels_last, of one type, bias float32 [C] or None -> scale (h + x + bias)."""

    ROWS, TILES = TILE // CHANNELS, 8

    @staticmethod
    def forward(ctx: Any, h: Tensor, x: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        channels, y = h.shape[1], torch.empty_like(h)
        count = h.numel() // channels
        grid = (triton.cdiv(count, AddScaled.ROWS), triton.cdiv(channels, CHANNELS))
        flags = {"CB": CHANNELS, "ROWS": AddScaled.ROWS, "BIAS": bias is not None}
        _add_scaled[grid](h, x, h if bias is None else bias, y, scale, count, channels, **flags)
        ctx.scale, ctx.biased = scale, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy = dy.contiguous(memory_format=torch.channels_last)
        channels, dx = dy.shape[1], torch.empty_like(dy)
        count = dy.numel() // channels
        programs = triton.cdiv(count, AddScaled.ROWS * AddScaled.TILES)
        part = torch.empty(programs, channels, dtype=torch.float32, device=dy.device)
        grid = (programs, triton.cdiv(channels, CHANNELS))
        sizes = {"CB": CHANNELS, "ROWS": AddScaled.ROWS, "TILES": AddScaled.TILES}
        _scaled[grid](dy, dx, part, ctx.scale, count, channels, **sizes)
        return dx, dx, part.sum(0) if ctx.biased else None, None
