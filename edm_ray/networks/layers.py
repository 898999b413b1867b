"""Layers of the U-Nets: linear, convolution with resampling, group normalisation, dropout and noise-level embeddings.

Written from Karras et al. 2022, appendix F; parameter names, shapes and initial values are those of the released
networks, so that weights move in both directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from edm_ray.errors import InputError
from edm_ray.networks.backend import kernels_for, one_kernel
from edm_ray.networks.dropout import keyed_mask


@dataclass(frozen=True)
class Init:
    """How a linear or convolution layer starts.

    ``xavier_uniform`` weights are U(-1, 1) sqrt(6 / (fan_in + fan_out)), ``fan_in_uniform`` U(-1, 1) / sqrt(fan_in),
    ``unit_normal`` N(0, 1); all times ``weight``. Biases are U(-1, 1) / sqrt(fan_in), times ``bias``.
    """

    mode: Literal["xavier_uniform", "fan_in_uniform", "unit_normal"]
    weight: float = 1.0
    bias: float = 0.0

    def fill_(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Draw weight [out, in, ...] and bias [out] in place from torch's generator."""
        field = math.prod(weight.shape[2:])
        fan_in, fan_out = weight.shape[1] * field, weight.shape[0] * field
        with torch.no_grad():
            if self.mode == "unit_normal":
                weight.normal_().mul_(self.weight)
            else:
                fan = (fan_in + fan_out) / 6.0 if self.mode == "xavier_uniform" else fan_in
                _uniform_(weight, self.weight / math.sqrt(fan))
            if bias is not None:
                _uniform_(bias, self.bias / math.sqrt(fan_in))


def _uniform_(tensor: torch.Tensor, bound: float) -> None:
    """Fill with U(-bound, bound); no number is drawn for a bound of zero."""
    if bound == 0.0:
        tensor.zero_()
    else:
        tensor.uniform_(-bound, bound)


class Linear(nn.Module):
    """y = x W^T + b. x: [..., in_features] -> [..., out_features]; weight [out, in], bias [out] or none."""

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        init.fill_(self.weight, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., in_features] -> [..., out_features]."""
        return F.linear(x, self.weight, self.bias)


def filter_2d(taps: tuple[float, ...]) -> torch.Tensor:
    """The separable resampling filter outer(f, f) / sum(f)^2: [1, 1, len(f), len(f)]."""
    f = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(f, f) / f.sum().square())[None, None]


class Conv2d(nn.Module):
    """Convolution (zero padding, odd kernel or none) with resampling by a factor of two before it.

    kernel 0 has no parameters and only resamples. Up: depthwise transposed convolution of stride 2 with 4 times the
    filter; down: depthwise convolution of stride 2; both padded by (len(f) - 1) // 2.
    fused_resample (down only): the convolution comes first, with the padding of both, then the filter without any.
    x: [B, in, H, W] -> [B, out, H', W'], H' = 2H, H/2 or H.
    """

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init | None = None,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: tuple[float, ...] = (1, 1),
        fused_resample: bool = False,
    ) -> None:
        super().__init__()
        assert not (up and down) and (kernel % 2 == 1 or kernel == 0) and not (fused_resample and not down)
        assert (kernel == 0) == (init is None) and (kernel > 0 or in_channels == out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if init is not None:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.empty(out_channels))
            init.fill_(self.weight, self.bias)
        # [1, 1] is nearest-neighbour up and a 2x2 mean down, which have faster kernels than a depthwise convolution.
        self.box = len(resample_filter) == 2 and resample_filter[0] == resample_filter[1]
        self.padding = kernel // 2
        self.filter_padding = (len(resample_filter) - 1) // 2
        if up or down:
            self.register_buffer("resample_filter", filter_2d(resample_filter))

    def forward(self, x: torch.Tensor, biased: bool = True) -> torch.Tensor:
        """x: [B, in_channels, H, W] -> [B, out_channels, H', W']; without its bias where that is added elsewhere."""
        if self.weight is None:
            return self._resample(x)
        bias = self.bias if biased else None
        if self.fused_resample:
            x = F.conv2d(x, self.weight, bias, padding=self.padding + self.filter_padding)
            return self._down(x, padding=0)
        if self.up and self.box and self.padding == 0:
            # A 1x1 convolution and copying pixels commute; this order does a quarter of the work.
            return self._resample(F.conv2d(x, self.weight, bias))
        return F.conv2d(self._resample(x), self.weight, bias, padding=self.padding)

    def _resample(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.up or self.down):
            return x
        if self.box and one_kernel(x):
            resampled: torch.Tensor = kernels_for(x).Resample.apply(x, self.up)
            return resampled
        if self.down:
            return self._down(x, self.filter_padding)
        if self.box:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        channels = x.shape[1]
        taps = (self.resample_filter * 4.0).expand(channels, -1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=self.filter_padding, groups=channels)

    def _down(self, x: torch.Tensor, padding: int) -> torch.Tensor:
        if self.box:
            return F.avg_pool2d(x, 2)
        taps = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


class GroupNorm(nn.Module):
    """Group normalisation with min(32, C // 4) groups. x: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.num_groups = min(32, channels // 4)
        if self.num_groups == 0 or channels % self.num_groups:
            raise InputError(
                f"a normalised layer has {channels} channels, which {self.num_groups} groups do not divide: "
                "allowed are multiples of 4 up to 128 and multiples of 32 above"
            )
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, H, W] -> [B, C, H, W]."""
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Dropout(nn.Module):
    """Element-wise dropout in training mode: by keys (`networks.dropout`), else from torch's own generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, ...] -> the same, scaled by 1 / (1 - p) where kept."""
        if not self.training or self.p == 0:
            return x
        return F.dropout(x, self.p, training=True) if self.keys is None else x * keyed_mask(x, self.keys, self.p)


class LabelDropout(nn.Module):
    """Zero the labels of an image with probability p in training mode, unscaled (for classifier-free guidance)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: torch.Tensor | None = None

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """labels: [B, label_dim] -> the same, some rows zero."""
        if not self.training or self.p == 0:
            return labels
        if self.keys is None:
            keep = torch.rand(labels.shape[0], 1, device=labels.device) >= self.p
        else:
            # The key's upper 32 bits, as a number in [-1/2, 1/2).
            keep = (self.keys[:, None] >> 32).double() * 2.0**-32 >= self.p - 0.5
        return labels * keep.to(labels.dtype)


class PositionalEmbedding(nn.Module):
    """Cosines and sines of c 10000^(-k / K), k = 0..n/2-1; K = n/2 - 1 with ``endpoint``, else n/2.

    noise_labels: [B] -> [B, n], cosines first; sines first with ``swap``. In the labels' own precision.
    """

    def __init__(self, channels: int, *, endpoint: bool, swap: bool) -> None:
        super().__init__()
        half = channels // 2
        if channels % 2 or half - endpoint < 1:
            raise InputError(f"a positional embedding has {channels} channels: allowed are even numbers, 4 or more")
        self.count, self.swap, self.period = half, swap, half - 1 if endpoint else half

    def forward(self, noise_labels: torch.Tensor) -> torch.Tensor:
        """noise_labels: [B] -> [B, n]."""
        k = torch.arange(self.count, dtype=noise_labels.dtype, device=noise_labels.device)
        return cos_sin(noise_labels[:, None] * (1.0 / 10000.0) ** (k / self.period), self.swap)


class FourierEmbedding(nn.Module):
    """Sines, then cosines, of 2 pi f c with n/2 random frequencies f ~ 16 N(0, 1), kept in the buffer ``freqs``.

    noise_labels: [B] -> [B, n].
    """

    freqs: torch.Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, noise_labels: torch.Tensor) -> torch.Tensor:
        """noise_labels: [B] -> [B, n]."""
        return cos_sin(noise_labels[:, None] * (2.0 * math.pi * self.freqs), swap=True)


def cos_sin(phase: torch.Tensor, swap: bool) -> torch.Tensor:
    """phase: [B, K] -> [B, 2K]: [cos, sin], or [sin, cos] with ``swap``."""
    halves = (phase.sin(), phase.cos()) if swap else (phase.cos(), phase.sin())
    return torch.cat(halves, dim=1)
