"""Group normalisation with what joins it, in Triton: forward, and backward. `networks.normalise.plain` is the same in
PyTorch.

y = mask silu(a (x + p - mean) / std + b), the mean and the variance of each image and group. It replaces six passes of
PyTorch's own kernels and keeps x alone for the backward pass. One program takes one image and some groups. Where the
pixels fit its registers, it reads them once; else twice, in tiles, the second time mostly from a cache.

Sums are in float32 and in a fixed order, so equal inputs give equal bits. Images lie in memory as [B, H W, C]
(channels_last).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from edm_ray.networks.dropout import MIX, STEP, threshold_of

Tensor = torch.Tensor


class Tile(NamedTuple):
    """What a program takes: so many channels (about), elements a thread at once, warps of 32 threads, and tiles read
    ahead (1: none)."""

    channels: int
    each: int
    warps: int
    stages: int = 1


FORWARD = {64: Tile(128, 8, 8, 1), 256: Tile(128, 8, 8, 1), 1024: Tile(128, 8, 8, 3)}
BACKWARD = {64: Tile(64, 8, 4, 1), 256: Tile(16, 8, 4, 1), 1024: Tile(128, 8, 8, 3)}
"""By pixels of an image, at most; the last for all larger ones. Measured on one H100 (docs/performance.md)."""

HARDWARE_SIGMOID = not triton.knobs.runtime.interpret
"""The device's own exponential and reciprocal, each within two units in the last place; the interpreter has neither."""


@triton.jit
def _sigmoid(z, ASM: tl.constexpr):
    """exp as Triton writes it takes care of subnormal numbers, and so does its division: three times the work."""
    if ASM:
        code: tl.constexpr = """{
            .reg .f32 t;
            mul.f32 t, $1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 t, t;
            add.f32 t, t, 0f3F800000;
            rcp.approx.ftz.f32 $0, t;
        }"""
        return tl.inline_asm_elementwise(code, "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1)
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _logical_shift(z, count: tl.constexpr):
    """z >> count without the sign."""
    return (z >> count) & ((1 << (64 - count)) - 1)


@triton.jit
def _kept(
    key, row, group, DROP: tl.constexpr, CG: tl.constexpr, CGP: tl.constexpr, C,
    STEP: tl.constexpr, MIX0: tl.constexpr, MIX1: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`networks.dropout.keyed_mask` of a tile [ROWS, K, CGP]: four elements in a row share a draw of 64 bits."""
    quad = tl.arange(0, CGP // 4)
    block = (row[:, None, None] * C + group[None, :, None] * CG) // 4 + quad[None, None, :]
    z = key + block.to(tl.int64) * STEP
    z = (z ^ _logical_shift(z, 30)) * MIX0
    z = (z ^ _logical_shift(z, 27)) * MIX1
    z = z ^ _logical_shift(z, 31)
    lane = tl.arange(0, 4).to(tl.int64)
    draw = (z[:, :, :, None] >> (16 * lane[None, None, None, :])) & 0xFFFF
    draw = tl.reshape(draw.to(tl.int32), [ROWS, K, CGP])
    draw = tl.where(draw >= 32768, draw - 65536, draw)
    return tl.where(draw >= DROP - 32768, 65536.0 / (65536 - DROP), 0.0)


@triton.jit
def _read(at, row, there, HW, C, FULL: tl.constexpr):
    """A tile [ROWS, K, CGP] in float32; zero beyond the image and its groups."""
    if FULL:
        return tl.load(at + row[:, None, None] * C).to(tl.float32)
    mask = (row < HW)[:, None, None] & there[None, :, :]
    return tl.load(at + row[:, None, None] * C, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(at, row, value, there, HW, C, FULL: tl.constexpr):
    if FULL:
        tl.store(at + row[:, None, None] * C, value.to(at.dtype.element_ty))
    else:
        mask = (row < HW)[:, None, None] & there[None, :, :]
        tl.store(at + row[:, None, None] * C, value.to(at.dtype.element_ty), mask=mask)


@triton.jit
def _only(value, row, there, HW, FULL: tl.constexpr):
    """value, and zero beyond the image and its groups."""
    if FULL:
        return value
    return tl.where((row < HW)[:, None, None] & there[None, :, :], value, 0.0)


@triton.jit
def _out(
    x, key, slope, level, row, group, C, ASM: tl.constexpr, CG: tl.constexpr, CGP: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, SILU: tl.constexpr, DROP: tl.constexpr, STEP: tl.constexpr, MIX0: tl.constexpr,
    MIX1: tl.constexpr,
):  # fmt: skip
    value = x * slope[None, :, :] + level[None, :, :]
    if SILU:
        value = value * _sigmoid(value, ASM)
    if DROP > 0:
        value *= _kept(key, row, group, DROP, CG, CGP, C, STEP, MIX0, MIX1, K, ROWS)
    return value


@triton.jit
def _forward(
    x, p, a, b, keys, y, means, stds, HW, stride_p, stride_a, stride_b, eps,
    C, G, ASM: tl.constexpr, CG: tl.constexpr, CGP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr, OFFSET: tl.constexpr, SILU: tl.constexpr,
    DROP: tl.constexpr, STEP: tl.constexpr, MIX0: tl.constexpr, MIX1: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * K + tl.arange(0, K)
    inner = tl.arange(0, CGP)
    c = group[:, None] * CG + inner[None, :]
    there = (group[:, None] < G) & (inner[None, :] < CG)
    key = tl.zeros([], tl.int64)
    if DROP > 0:
        key = tl.load(keys + n)
    row = tl.arange(0, ROWS)
    from_x, to_y = x + n * HW * C + c[None, :, :], y + n * HW * C + c[None, :, :]
    offset = tl.zeros([K, CGP], tl.float32)
    if OFFSET:
        offset = tl.load(p + n * stride_p + c, mask=there, other=0.0).to(tl.float32)
    value = _read(from_x, row, there, HW, C, FULL)
    if WHOLE:
        mean = tl.sum(tl.sum(_only(value + offset[None, :, :], row, there, HW, FULL), axis=2), axis=0) / (HW * CG)
        apart = _only(value + (offset - mean[:, None])[None, :, :], row, there, HW, FULL)
        variance = tl.sum(tl.sum(apart * apart, axis=2), axis=0) / (HW * CG)
    else:
        # Deviations from the first tile's mean: squares of large values would lose what they differ in.
        first = _only(value + offset[None, :, :], row, there, HW, FULL)
        about = tl.sum(tl.sum(first, axis=2), axis=0) / (tl.minimum(HW, ROWS) * CG)
        shift = (offset - about[:, None])[None, :, :]
        # Over the tiles element by element: sums across threads are taken once, at the end.
        total = tl.zeros([ROWS, K, CGP], tl.float32)
        squares = tl.zeros([ROWS, K, CGP], tl.float32)
        for start in tl.range(0, HW, ROWS, num_stages=STAGES):
            value = _only(_read(from_x, start + row, there, HW, C, FULL) + shift, start + row, there, HW, FULL)
            total += value
            squares += value * value
        apart = tl.sum(tl.sum(total, axis=2), axis=0) / (HW * CG)
        mean = about + apart
        variance = tl.sum(tl.sum(squares, axis=2), axis=0) / (HW * CG) - apart * apart
    std = tl.sqrt(tl.maximum(variance, 0.0) + eps)
    tl.store(means + n * G + group, mean, mask=group < G)
    tl.store(stds + n * G + group, std, mask=group < G)
    slope = tl.load(a + n * stride_a + c, mask=there, other=0.0) / std[:, None]
    level = tl.load(b + n * stride_b + c, mask=there, other=0.0) + (offset - mean[:, None]) * slope
    if WHOLE:
        value = _out(value, key, slope, level, row, group, C, ASM, CG, CGP, K, ROWS, SILU, DROP, STEP, MIX0, MIX1)
        _write(to_y, row, value, there, HW, C, FULL)
    else:
        for start in tl.range(0, HW, ROWS, num_stages=STAGES):
            value = _read(from_x, start + row, there, HW, C, FULL)
            value = _out(
                value, key, slope, level, start + row, group, C, ASM, CG, CGP, K, ROWS, SILU, DROP, STEP, MIX0, MIX1
            )
            _write(to_y, start + row, value, there, HW, C, FULL)


@triton.jit
def _gradient_in(
    from_x, from_dy, key, there, inverse, shift, scale, level, row, group, HW, C, ASM: tl.constexpr,
    CG: tl.constexpr, CGP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, FULL: tl.constexpr,
    SILU: tl.constexpr, DROP: tl.constexpr, STEP: tl.constexpr, MIX0: tl.constexpr, MIX1: tl.constexpr,
):  # fmt: skip
    """u and dz of a tile (see `_backward`), both zero beyond the image."""
    u = _read(from_x, row, there, HW, C, FULL) * inverse[None, :, None] + shift[None, :, :]
    u = _only(u, row, there, HW, FULL)
    dz = _read(from_dy, row, there, HW, C, FULL)
    if DROP > 0:
        dz *= _kept(key, row, group, DROP, CG, CGP, C, STEP, MIX0, MIX1, K, ROWS)
    if SILU:
        z = u * scale[None, :, :] + level[None, :, :]
        s = _sigmoid(z, ASM)
        dz *= s + s * (z - z * s)
    return u, dz


@triton.jit
def _backward(
    x, dy, p, a, b, keys, means, stds, dx, dp, da, db, HW, stride_p, stride_a, stride_b,
    C, G, ASM: tl.constexpr, CG: tl.constexpr, CGP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr, OFFSET: tl.constexpr, SILU: tl.constexpr,
    DROP: tl.constexpr, STEP: tl.constexpr, MIX0: tl.constexpr, MIX1: tl.constexpr,
):  # fmt: skip
    """With u = (x + p - mean) / std and dz the gradient of a u + b: db = sum dz, da = sum dz u over the pixels;
    dx = (a dz - <a dz> - u <a dz u>) / std with means <> over the group; dp = sum dx."""
    n = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * K + tl.arange(0, K)
    inner = tl.arange(0, CGP)
    c = group[:, None] * CG + inner[None, :]
    there = (group[:, None] < G) & (inner[None, :] < CG)
    key = tl.zeros([], tl.int64)
    if DROP > 0:
        key = tl.load(keys + n)
    row = tl.arange(0, ROWS)
    here = n * HW * C + c[None, :, :]
    from_x, from_dy, to_dx = x + here, dy + here, dx + here
    mean = tl.load(means + n * G + group, mask=group < G, other=0.0)
    inverse = 1.0 / tl.load(stds + n * G + group, mask=group < G, other=1.0)
    shift = tl.zeros([K, CGP], tl.float32) - (mean * inverse)[:, None]
    if OFFSET:
        shift += tl.load(p + n * stride_p + c, mask=there, other=0.0).to(tl.float32) * inverse[:, None]
    scale = tl.load(a + n * stride_a + c, mask=there, other=0.0)
    level = tl.load(b + n * stride_b + c, mask=there, other=0.0)
    if WHOLE:
        u, dz = _gradient_in(
            from_x, from_dy, key, there, inverse, shift, scale, level, row, group, HW, C, ASM, CG, CGP, K, ROWS,
            FULL, SILU, DROP, STEP, MIX0, MIX1,
        )  # fmt: skip
        sums, products, units = tl.sum(dz, axis=0), tl.sum(dz * u, axis=0), tl.sum(u, axis=0)
    else:
        every_dz = tl.zeros([ROWS, K, CGP], tl.float32)
        every_dz_u = tl.zeros([ROWS, K, CGP], tl.float32)
        every_u = tl.zeros([ROWS, K, CGP], tl.float32)
        for start in tl.range(0, HW, ROWS, num_stages=STAGES):
            u, dz = _gradient_in(
                from_x, from_dy, key, there, inverse, shift, scale, level, start + row, group, HW, C, ASM, CG, CGP,
                K, ROWS, FULL, SILU, DROP, STEP, MIX0, MIX1,
            )  # fmt: skip
            every_dz += dz
            every_dz_u += dz * u
            every_u += u
        sums, products, units = tl.sum(every_dz, axis=0), tl.sum(every_dz_u, axis=0), tl.sum(every_u, axis=0)
    mean_dz = tl.sum(scale * sums, axis=1) / (HW * CG)
    mean_dz_u = tl.sum(scale * products, axis=1) / (HW * CG)
    out = n * C + c
    tl.store(db + out, sums, mask=there)
    tl.store(da + out, products, mask=there)
    if OFFSET:
        total = scale * sums - HW * mean_dz[:, None] - units * mean_dz_u[:, None]
        tl.store(dp + out, total * inverse[:, None], mask=there)
    scale_in = (scale * inverse[:, None])[None, :, :]
    level_in, slope_in = (mean_dz * inverse)[None, :, None], (mean_dz_u * inverse)[None, :, None]
    if WHOLE:
        _write(to_dx, row, scale_in * dz - (u * slope_in + level_in), there, HW, C, FULL)
    else:
        for start in tl.range(0, HW, ROWS, num_stages=STAGES):
            u, dz = _gradient_in(
                from_x, from_dy, key, there, inverse, shift, scale, level, start + row, group, HW, C, ASM, CG, CGP,
                K, ROWS, FULL, SILU, DROP, STEP, MIX0, MIX1,
            )  # fmt: skip
            _write(to_dx, start + row, scale_in * dz - (u * slope_in + level_in), there, HW, C, FULL)


def _launch_of(x: Tensor, groups: int, drop: int, tiles: dict[int, Tile]) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, and what the kernels are compiled for."""
    batch, channels, height, width = x.shape
    pixels, each = height * width, channels // groups
    tile = tiles[next((most for most in tiles if pixels <= most), max(tiles))]
    padded = max(4, triton.next_power_of_2(each))
    k = min(triton.next_power_of_2(groups), max(1, tile.channels // padded))
    rows = min(triton.next_power_of_2(pixels), max(1, 32 * tile.warps * tile.each // (k * padded)))
    sizes = {
        "C": channels, "G": groups, "CG": each, "CGP": padded, "K": k, "ROWS": rows, "WHOLE": rows >= pixels,
        "FULL": pixels % rows == 0 and each == padded and groups % k == 0, "DROP": drop, "ASM": HARDWARE_SIGMOID,
        "STEP": STEP, "MIX0": MIX[0][1], "MIX1": MIX[1][1], "num_warps": tile.warps, "STAGES": tile.stages,
    }  # fmt: skip
    return (triton.cdiv(groups, k), batch), sizes


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
        drop = threshold_of(how.dropout) if keys is not None else 0
        grid, sizes = _launch_of(x, how.groups, drop, FORWARD)
        flags = {"OFFSET": p is not None, "SILU": how.silu}
        strides = (0 if p is None else p.stride(0), a.stride(0), b.stride(0))
        pixels = x.shape[2] * x.shape[3]
        _forward[grid](
            x, x if p is None else p, a, b, a if keys is None else keys, y, means, stds, pixels, *strides, how.eps,
            **sizes, **flags,
        )  # fmt: skip
        ctx.save_for_backward(x, p, a, b, keys, means, stds)
        ctx.launch = (how.groups, drop, flags, strides, pixels)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, p, a, b, keys, means, stds = ctx.saved_tensors
        groups, drop, flags, strides, pixels = ctx.launch
        grid, sizes = _launch_of(x, groups, drop, BACKWARD)
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        da, db, dp = (torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(3))
        _backward[grid](
            x, dy, x if p is None else p, a, b, a if keys is None else keys, means, stds, dx, dp, da, db, pixels,
            *strides, **sizes, **flags,
        )  # fmt: skip
        return dx, None if p is None else dp.to(p.dtype), da, db, None, None
