"""What stands between convolutions, in Triton: forward, and backward. `networks.normalise` has the same in PyTorch.

`Normalise`: y = mask silu(a (x + p - mean) / std + b), the mean and the variance of each image and group. It replaces
six passes of PyTorch's own kernels and keeps x alone for the backward pass. One program takes one image and some
groups, whole: it reads them twice, the second time mostly from the cache.

`AddScaled`: y = s (h + x + bias), one pass where PyTorch takes three, with the bias of the convolutions before it.
`Resample`: 2x2 means, and their transpose.

Sums are in float32 and in a fixed order, so equal inputs give equal bits. Images lie in memory as [B, H W, C]
(channels_last).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from edm_ray.networks.dropout import MIX, STEP, threshold_of

CHANNELS = 64
"""Channels of a program, about: 128 bytes of a pixel in 16 bits."""
TILE = 4096
"""Elements that a program holds at once."""

Tensor = torch.Tensor


@triton.jit
def _logical_shift(z, count: tl.constexpr):
    """z >> count without the sign."""
    return (z >> count) & ((1 << (64 - count)) - 1)


@triton.jit
def _kept(
    keys, n, row, group, HW, DROP: tl.constexpr, CG: tl.constexpr, CGP: tl.constexpr, C,
    STEP: tl.constexpr, MIX0: tl.constexpr, MIX1: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`networks.dropout.keyed_mask` of a tile [ROWS, K, CGP]: four elements in a row share a draw of 64 bits."""
    quad = tl.arange(0, CGP // 4)
    block = (row.to(tl.int64)[:, None, None] * C + group.to(tl.int64)[None, :, None] * CG) // 4 + quad[None, None, :]
    z = tl.load(keys + n) + block * STEP
    z = (z ^ _logical_shift(z, 30)) * MIX0
    z = (z ^ _logical_shift(z, 27)) * MIX1
    z = z ^ _logical_shift(z, 31)
    lane = tl.arange(0, 4).to(tl.int64)
    draw = (z[:, :, :, None] >> (16 * lane[None, None, None, :])) & 0xFFFF
    draw = tl.reshape(draw.to(tl.int32), [ROWS, K, CGP])
    draw = tl.where(draw >= 32768, draw - 65536, draw)
    return tl.where(draw >= DROP - 32768, 65536.0 / (65536 - DROP), 0.0)


@triton.jit
def _forward(
    x, p, a, b, keys, y, means, stds, HW, stride_p, stride_a, stride_b, eps,
    C, G, CG: tl.constexpr, CGP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    OFFSET: tl.constexpr, SILU: tl.constexpr, DROP: tl.constexpr, STEP: tl.constexpr, MIX0: tl.constexpr,
    MIX1: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * K + tl.arange(0, K)
    inner = tl.arange(0, CGP)
    c = group[:, None] * CG + inner[None, :]
    there = (group[:, None] < G) & (inner[None, :] < CG)
    rows = tl.arange(0, ROWS)
    at = x + n * HW * C + c[None, :, :]
    offset = tl.zeros([K, CGP], tl.float32)
    if OFFSET:
        offset = tl.load(p + n * stride_p + c, mask=there, other=0.0).to(tl.float32)
    # Deviations from the first tile's mean: squares of large values would lose what they differ in.
    mask = (rows < HW)[:, None, None] & there[None, :, :]
    first = tl.load(at + rows[:, None, None] * C, mask=mask, other=0.0).to(tl.float32) + offset[None, :, :]
    about = tl.sum(tl.sum(tl.where(mask, first, 0.0), axis=2), axis=0) / (tl.minimum(HW, ROWS) * CG)
    # Over the tiles element by element: sums across threads are taken once, at the end.
    total = tl.zeros([ROWS, K, CGP], tl.float32)
    total_of_squares = tl.zeros([ROWS, K, CGP], tl.float32)
    for start in range(0, HW, ROWS):
        row = start + rows
        mask = (row < HW)[:, None, None] & there[None, :, :]
        value = tl.load(at + row[:, None, None] * C, mask=mask, other=0.0).to(tl.float32) + offset[None, :, :]
        value = tl.where(mask, value - about[None, :, None], 0.0)
        total += value
        total_of_squares += value * value
    size = HW * CG
    apart = tl.sum(tl.sum(total, axis=2), axis=0) / size
    mean = about + apart
    variance = tl.sum(tl.sum(total_of_squares, axis=2), axis=0) / size - apart * apart
    std = tl.sqrt(tl.maximum(variance, 0.0) + eps)
    tl.store(means + n * G + group, mean, mask=group < G)
    tl.store(stds + n * G + group, std, mask=group < G)
    slope = tl.load(a + n * stride_a + c, mask=there, other=0.0) / std[:, None]
    level = tl.load(b + n * stride_b + c, mask=there, other=0.0) - mean[:, None] * slope
    for start in range(0, HW, ROWS):
        row = start + rows
        mask = (row < HW)[:, None, None] & there[None, :, :]
        value = tl.load(at + row[:, None, None] * C, mask=mask, other=0.0).to(tl.float32) + offset[None, :, :]
        value = value * slope[None, :, :] + level[None, :, :]
        if SILU:
            value = value / (1.0 + tl.exp(-value))
        if DROP > 0:
            value *= _kept(keys, n, row, group, HW, DROP, CG, CGP, C, STEP, MIX0, MIX1, K, ROWS)
        out = y + n * HW * C + c[None, :, :] + row[:, None, None] * C
        tl.store(out, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_in(
    x, dy, keys, at, mask, shift, std, scale, level, n, row, group, HW, C,
    CG: tl.constexpr, CGP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr,
    DROP: tl.constexpr, STEP: tl.constexpr, MIX0: tl.constexpr, MIX1: tl.constexpr,
):  # fmt: skip
    """u and dz of a tile (see `_backward`), both zero beyond the image."""
    u = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + shift[None, :, :]) / std[None, :, None]
    u = tl.where(mask, u, 0.0)
    dz = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    if DROP > 0:
        dz *= _kept(keys, n, row, group, HW, DROP, CG, CGP, C, STEP, MIX0, MIX1, K, ROWS)
    if SILU:
        z = u * scale[None, :, :] + level[None, :, :]
        s = 1.0 / (1.0 + tl.exp(-z))
        dz *= s * (1.0 + z * (1.0 - s))
    return u, dz


@triton.jit
def _backward(
    x, dy, p, a, b, keys, means, stds, dx, dp, da, db, HW, stride_p, stride_a, stride_b,
    C, G, CG: tl.constexpr, CGP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    OFFSET: tl.constexpr, SILU: tl.constexpr, DROP: tl.constexpr, STEP: tl.constexpr, MIX0: tl.constexpr,
    MIX1: tl.constexpr,
):  # fmt: skip
    """With u = (x + p - mean) / std and dz the gradient of a u + b: db = sum dz, da = sum dz u over the pixels;
    dx = (a dz - <a dz> - u <a dz u>) / std with means <> over the group; dp = sum dx."""
    n = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * K + tl.arange(0, K)
    inner = tl.arange(0, CGP)
    c = group[:, None] * CG + inner[None, :]
    there = (group[:, None] < G) & (inner[None, :] < CG)
    rows = tl.arange(0, ROWS)
    here = n * HW * C + c[None, :, :]
    mean = tl.load(means + n * G + group, mask=group < G, other=0.0)
    std = tl.load(stds + n * G + group, mask=group < G, other=1.0)
    shift = -mean[:, None] + tl.zeros([K, CGP], tl.float32)
    if OFFSET:
        shift += tl.load(p + n * stride_p + c, mask=there, other=0.0).to(tl.float32)
    scale = tl.load(a + n * stride_a + c, mask=there, other=0.0)
    level = tl.load(b + n * stride_b + c, mask=there, other=0.0)
    every_dz = tl.zeros([ROWS, K, CGP], tl.float32)
    every_dz_u = tl.zeros([ROWS, K, CGP], tl.float32)
    every_u = tl.zeros([ROWS, K, CGP], tl.float32)
    for start in range(0, HW, ROWS):
        row = start + rows
        mask = (row < HW)[:, None, None] & there[None, :, :]
        u, dz = _gradient_in(
            x, dy, keys, here + row[:, None, None] * C, mask, shift, std, scale, level, n, row, group, HW, C,
            CG, CGP, K, ROWS, SILU, DROP, STEP, MIX0, MIX1,
        )  # fmt: skip
        every_dz += dz
        every_dz_u += dz * u
        every_u += u
    sums = tl.sum(every_dz, axis=0)
    products = tl.sum(every_dz_u, axis=0)
    units = tl.sum(every_u, axis=0)
    size = HW * CG
    mean_dz = tl.sum(scale * sums, axis=1) / size
    mean_dz_u = tl.sum(scale * products, axis=1) / size
    out = n * C + c
    tl.store(db + out, sums, mask=there)
    tl.store(da + out, products, mask=there)
    if OFFSET:
        total = scale * sums - HW * mean_dz[:, None] - units * mean_dz_u[:, None]
        tl.store(dp + out, total / std[:, None], mask=there)
    for start in range(0, HW, ROWS):
        row = start + rows
        mask = (row < HW)[:, None, None] & there[None, :, :]
        at = here + row[:, None, None] * C
        u, dz = _gradient_in(
            x, dy, keys, at, mask, shift, std, scale, level, n, row, group, HW, C,
            CG, CGP, K, ROWS, SILU, DROP, STEP, MIX0, MIX1,
        )  # fmt: skip
        value = (scale[None, :, :] * dz - mean_dz[None, :, None] - u * mean_dz_u[None, :, None]) / std[None, :, None]
        tl.store(dx + at, value.to(dx.dtype.element_ty), mask=mask)


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


def _shape_of(x: Tensor, groups: int, drop: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid, and the sizes that the kernels are compiled for."""
    batch, channels, height, width = x.shape
    each = channels // groups
    padded = max(4, triton.next_power_of_2(each))
    k = min(triton.next_power_of_2(groups), max(1, CHANNELS // padded))
    rows = min(triton.next_power_of_2(height * width), max(1, TILE // (k * padded)))
    sizes = {"C": channels, "G": groups, "CG": each, "CGP": padded, "K": k, "ROWS": rows, "DROP": drop}
    return (triton.cdiv(groups, k), batch), sizes | {"STEP": STEP, "MIX0": MIX[0][1], "MIX1": MIX[1][1], "num_warps": 4}


class How(NamedTuple):
    """What `Normalise` does besides."""

    groups: int
    eps: float
    silu: bool
    dropout: float


class Normalise(torch.autograd.Function):
    """x [B, C, H, W] channels_last, p [B, C] or None, a and b float32 [B, C] (any stride of the rows), keys int64 [B]
    or None -> y like x; gradients of x, p, a and b. With keys, C / groups is a multiple of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor | None, a: Tensor, b: Tensor, keys: Tensor | None, how: How) -> Tensor:
        y = torch.empty_like(x)
        means, stds = (torch.empty(len(x), how.groups, dtype=torch.float32, device=x.device) for _ in range(2))
        grid, sizes = _shape_of(x, how.groups, threshold_of(how.dropout) if keys is not None else 0)
        flags = {"OFFSET": p is not None, "SILU": how.silu}
        strides = (0 if p is None else p.stride(0), a.stride(0), b.stride(0))
        pixels = x.shape[2] * x.shape[3]
        _forward[grid](
            x, x if p is None else p, a, b, a if keys is None else keys, y, means, stds, pixels, *strides, how.eps,
            **sizes, **flags,
        )  # fmt: skip
        ctx.save_for_backward(x, p, a, b, keys, means, stds)
        ctx.launch = (grid, sizes, flags, strides, pixels)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, p, a, b, keys, means, stds = ctx.saved_tensors
        grid, sizes, flags, strides, pixels = ctx.launch
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        da, db, dp = (torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(3))
        _backward[grid](
            x, dy, x if p is None else p, a, b, a if keys is None else keys, means, stds, dx, dp, da, db, pixels,
            *strides, **sizes, **flags,
        )  # fmt: skip
        return dx, None if p is None else dp.to(p.dtype), da, db, None, None
