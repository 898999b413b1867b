"""The layers against their formulas, written out as loops and direct convolutions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from edm_ray.errors import InputError
from edm_ray.networks.layers import (
    Conv2d,
    Dropout,
    FourierEmbedding,
    GroupNorm,
    Init,
    LabelDropout,
    Linear,
    PositionalEmbedding,
)
from edm_ray.networks.unet import BlockStyle, UNetBlock, attend

XAVIER = Init("xavier_uniform", bias=1.0)


def direct_down(x: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
    """out[i, j] = sum_ab f[a] f[b] / sum(f)^2 x[2i + a - pad, 2j + b - pad], zero outside."""
    pad, size = (len(taps) - 1) // 2, x.shape[-1]
    out = torch.zeros(*x.shape[:2], size // 2, size // 2, dtype=x.dtype)
    for i in range(size // 2):
        for j in range(size // 2):
            for a, fa in enumerate(taps):
                for b, fb in enumerate(taps):
                    r, c = 2 * i + a - pad, 2 * j + b - pad
                    if 0 <= r < size and 0 <= c < size:
                        out[:, :, i, j] += fa * fb / sum(taps) ** 2 * x[:, :, r, c]
    return out


def direct_up(x: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
    """Every pixel (r, c) is spread by 4 f[a] f[b] / sum(f)^2 to (2r + a - pad, 2c + b - pad)."""
    pad, size = (len(taps) - 1) // 2, x.shape[-1]
    out = torch.zeros(*x.shape[:2], 2 * size, 2 * size, dtype=x.dtype)
    for r in range(size):
        for c in range(size):
            for a, fa in enumerate(taps):
                for b, fb in enumerate(taps):
                    i, j = 2 * r + a - pad, 2 * c + b - pad
                    if 0 <= i < 2 * size and 0 <= j < 2 * size:
                        out[:, :, i, j] += 4 * fa * fb / sum(taps) ** 2 * x[:, :, r, c]
    return out


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2)])
def test_resampling_is_the_direct_convolution_with_the_filter(taps: tuple[float, ...]) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    up = Conv2d(3, 3, 0, up=True, resample_filter=taps).double()
    down = Conv2d(3, 3, 0, down=True, resample_filter=taps).double()
    torch.testing.assert_close(down(x), direct_down(x, taps))
    torch.testing.assert_close(up(x), direct_up(x, taps))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_comes_before_the_convolution(kernel: int, taps: tuple[float, ...]) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for up, direct in ((True, direct_up), (False, direct_down)):
        conv = Conv2d(3, 5, kernel, XAVIER, up=up, down=not up, resample_filter=taps).double()
        expected = F.conv2d(direct(x, taps), conv.weight, conv.bias, padding=kernel // 2)
        torch.testing.assert_close(conv(x), expected)


def test_fused_downsampling_filters_the_convolution_padded_for_both() -> None:
    taps = (1, 3, 3, 1)
    conv = Conv2d(3, 5, 3, XAVIER, down=True, resample_filter=taps, fused_resample=True).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wide = F.conv2d(x, conv.weight, conv.bias, padding=2)
    # The filter needs no padding of its own: crop what direct_down, which pads by one, adds around the border.
    inner = direct_down(F.pad(wide, (1, 1, 1, 1)), taps)[:, :, 1:5, 1:5]
    out = conv(x)
    assert out.shape == (2, 5, 4, 4)
    torch.testing.assert_close(out, inner)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_reads_query_key_value_interleaved_per_channel(heads: int) -> None:
    channels, side = 8, 3
    qkv, proj = (Conv2d(channels, n * channels, 1, XAVIER).double() for n in (3, 1))
    x = torch.randn(2, channels, side, side, dtype=torch.float64)
    raw = F.conv2d(x, qkv.weight, qkv.bias).flatten(2)
    per_head, pixels = channels // heads, side * side
    mixed = torch.zeros(2, channels, pixels, dtype=torch.float64)
    for b in range(2):
        for head in range(heads):
            rows = [head * per_head + c for c in range(per_head)]
            q, k, v = (torch.stack([raw[b, 3 * row + j] for row in rows]) for j in range(3))
            for p in range(pixels):
                scores = torch.stack([(q[:, p] * k[:, o]).sum() / math.sqrt(per_head) for o in range(pixels)])
                weights = scores.exp() / scores.exp().sum()
                mixed[b, rows, p] = (v * weights).sum(dim=1)
    expected = F.conv2d(mixed.view_as(x), proj.weight, proj.bias)
    torch.testing.assert_close(attend(x, qkv, proj, heads), expected)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(attend(nhwc, qkv, proj, heads), expected)


@pytest.mark.parametrize("adaptive", [False, True])
def test_block_is_the_formula_of_the_paper(adaptive: bool) -> None:
    style = BlockStyle(
        emb_channels=6, dropout=0.5, init=XAVIER, init_zero=XAVIER, init_attn=XAVIER,
        resample_proj=not adaptive, adaptive_scale=adaptive, skip_scale=1.0 if adaptive else math.sqrt(0.5),
    )  # fmt: skip
    block = UNetBlock(8, 8, style, up=True, attention=True).double().eval()
    x, emb = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def norm(layer: GroupNorm, h: torch.Tensor) -> torch.Tensor:
        grouped = h.reshape(2, 2, -1)
        grouped = (grouped - grouped.mean(-1, keepdim=True)) / (
            grouped.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        return grouped.view_as(h)

    def conv(layer: Conv2d, h: torch.Tensor) -> torch.Tensor:
        return F.conv2d(h, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def twice(h: torch.Tensor) -> torch.Tensor:
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    h = conv(block.conv0, twice(F.silu(norm(block.norm0, x))))
    p = (emb @ block.affine.weight.T + block.affine.bias)[:, :, None, None]
    if adaptive:
        assert block.skip.weight is None
        h, skip = F.silu(norm(block.norm1, h) * (1 + p[:, :8]) + p[:, 8:]), twice(x)
    else:
        h, skip = F.silu(norm(block.norm1, h + p)), conv(block.skip, twice(x))
    y = (conv(block.conv1, h) + skip) * style.skip_scale
    y = (y + attend(norm(block.norm2, y), block.qkv, block.proj, 1)) * style.skip_scale
    torch.testing.assert_close(block(x, emb), y)


def test_positional_embedding_frequencies_and_order() -> None:
    labels = torch.tensor([0.3, -1.7], dtype=torch.float64)
    for endpoint, swap in ((True, True), (False, False)):
        out = PositionalEmbedding(8, endpoint=endpoint, swap=swap)(labels)
        for b, label in enumerate(labels.tolist()):
            phase = [label * 10000 ** (-k / (4 - endpoint)) for k in range(4)]
            cosines, sines = [math.cos(p) for p in phase], [math.sin(p) for p in phase]
            expected = sines + cosines if swap else cosines + sines
            torch.testing.assert_close(out[b], torch.tensor(expected, dtype=torch.float64))


def test_fourier_embedding_is_sines_then_cosines_of_its_frequencies() -> None:
    embedding = FourierEmbedding(2000).double()
    assert 14.5 < float(embedding.freqs.std()) < 17.5 and [n for n, _ in embedding.named_buffers()] == ["freqs"]
    labels = torch.tensor([0.25, -0.5], dtype=torch.float64)
    phase = 2 * math.pi * labels[:, None] * embedding.freqs[None, :]
    torch.testing.assert_close(embedding(labels), torch.cat([phase.sin(), phase.cos()], dim=1))


@pytest.mark.parametrize(
    ("init", "weight", "bias"),
    [
        (Init("xavier_uniform"), math.sqrt(6 / (9 * (20 + 40))), 0.0),
        (Init("xavier_uniform", weight=1e-5), 1e-5 * math.sqrt(6 / (9 * (20 + 40))), 0.0),
        (Init("fan_in_uniform", bias=1.0), 1 / math.sqrt(180), 1 / math.sqrt(180)),
        (Init("fan_in_uniform", weight=0.0), 0.0, 0.0),
    ],
)
def test_initial_values_fill_the_stated_interval(init: Init, weight: float, bias: float) -> None:
    conv = Conv2d(20, 40, 3, init)
    for tensor, bound in ((conv.weight.detach(), weight), (conv.bias.detach(), bias)):
        assert float(tensor.abs().max()) <= bound * (1 + 1e-6)
        assert float(tensor.abs().max()) >= 0.9 * bound
        assert float(tensor.mean().abs()) <= 0.3 * bound


def test_class_embedding_of_adm_starts_unit_normal() -> None:
    weight = Linear(10, 2000, Init("unit_normal"), bias=False).weight.detach()
    assert abs(float(weight.std()) - 1.0) < 0.02 and abs(float(weight.mean())) < 0.03


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    x, layer = torch.ones(400, 400), Dropout(0.25)
    assert layer.eval()(x) is x
    out = layer.train()(x)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert abs(float(out.mean()) - 1.0) < 0.01


def test_label_dropout_zeroes_whole_rows_unscaled() -> None:
    labels, layer = torch.full((4000, 3), 2.0), LabelDropout(0.1)
    assert layer.eval()(labels) is labels
    out = layer.train()(labels)
    assert bool(((out == 2.0).all(1) | (out == 0.0).all(1)).all())
    assert 0.07 < float((out[:, 0] == 0).double().mean()) < 0.13


@pytest.mark.parametrize("channels", [3, 9, 144])
def test_channels_that_groups_do_not_divide_are_refused(channels: int) -> None:
    with pytest.raises(InputError, match=rf"{channels} channels.*multiples of 4"):
        GroupNorm(channels, 1e-5)
