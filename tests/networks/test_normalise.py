"""The fused kernel against PyTorch's own operations in float64, on a GPU or in Triton's interpreter on a CPU."""

from __future__ import annotations

import os

import pytest
import torch

from edm_ray.networks.backend import has_triton
from edm_ray.networks.layers import Conv2d, Dropout, GroupNorm
from edm_ray.networks.normalise import Join, add_scaled, concatenate, normalise, plain
from edm_ray.seeding import stream_key, words

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_kernel = pytest.mark.skipif(
    not has_triton() or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton and a GPU, or TRITON_INTERPRET=1",
)
CASES = {
    "convolution": {"channels": 64, "side": 8},
    "offset and dropout": {"channels": 64, "side": 8, "join": "offset", "dropout": 0.3},
    "scale and shift": {"channels": 96, "side": 4, "join": "scale"},
    "groups of 6, pixels that fill no tile": {"channels": 192, "side": 5, "join": "offset"},
    "attention": {"channels": 128, "side": 16, "silu": False},
    "groups of 12 with dropout": {"channels": 384, "side": 4, "join": "scale", "dropout": 0.1},
    "one row for all images": {"channels": 32, "side": 8, "join": "offset", "rows": 1},
    "an image at once": {"channels": 64, "side": 32, "join": "offset", "dropout": 0.5},
    "several tiles": {"channels": 256, "side": 36, "join": "offset", "dropout": 0.5},
}


def _inputs(channels: int, side: int, join: str = "", dropout: float = 0.0, rows: int = 3, silu: bool = True):
    """Everything in float64, from one generator."""
    draw = torch.Generator().manual_seed(channels + side)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    norm = GroupNorm(channels, 1e-6).double()
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * normal(channels))
        norm.bias.copy_(normal(channels))
    # A mean of 30 standard deviations: the variance must not drown in it.
    x = (normal(3, channels, side, side) + 30 * normal(3, 1, 1, 1)).to(memory_format=torch.channels_last)
    parts = {"offset": 1, "scale": 2}.get(join, 0)
    rest = [normal(rows, channels) for _ in range(parts)]
    layer = Dropout(dropout).train()
    layer.keys = words(stream_key("dropout"), torch.arange(3), 2)[:, 0] * 2**31
    return norm, x, rest, layer, silu


def _run(function, norm, x, rest, layer, silu, dtype, device, rounded):
    """Output, and the gradients of a fixed direction in it, rounded to a type."""
    norm = norm.to(device, torch.float32 if dtype != torch.float64 else dtype)
    leaves = [t.to(device, dtype).detach().requires_grad_() for t in (x, *rest)]
    leaves[0] = leaves[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    layer.keys = layer.keys.to(device)
    join = Join(offset=leaves[1]) if len(rest) == 1 else Join(scale=leaves[1], shift=leaves[2]) if rest else Join()
    y = function(norm, leaves[0], join, layer, silu)
    direction = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).reshape(x.shape).to(rounded).to(device, y.dtype)
    wanted = [*leaves, norm.weight, norm.bias]
    return [y.detach(), *torch.autograd.grad(y, wanted, direction)]


@needs_kernel
@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_the_kernel_and_its_gradients_are_those_of_float64(monkeypatch, case, dtype, bound):
    """Relative to the largest value. bfloat16 inputs are rounded before both see them."""
    norm, x, rest, layer, silu = _inputs(**CASES[case])
    x, rest = x.to(dtype).double(), [each.to(dtype).double() for each in rest]
    expected = _run(plain, norm, x, rest, layer, silu, torch.float64, "cpu", dtype)
    if INTERPRETED:
        monkeypatch.setattr("edm_ray.networks.normalise.one_kernel", lambda x: x.dtype != torch.float64)
    got = _run(normalise, norm, x, rest, layer, silu, dtype, DEVICE, dtype)
    assert got[0].dtype == dtype and got[0].is_contiguous(memory_format=torch.channels_last)
    for value, truth in zip(got, expected, strict=True):
        error = (value.cpu().double() - truth).abs().max() / truth.abs().max()
        assert error < bound, error
    again = _run(normalise, norm, x, rest, layer, silu, dtype, DEVICE, dtype)
    assert all(torch.equal(first, second) for first, second in zip(got, again, strict=True))


@needs_kernel
@pytest.mark.gpu
def test_the_kernel_drops_the_elements_that_the_mask_drops(monkeypatch):
    """The CPU's mask of the same layout: elements count in the order in which they lie in memory."""
    norm, x, _, layer, _ = _inputs(channels=64, side=8, dropout=0.4)
    norm, x = norm.float(), x.float()
    expected = plain(norm, x, dropout=layer) == 0
    if INTERPRETED:
        monkeypatch.setattr("edm_ray.networks.normalise.one_kernel", lambda x: x.dtype != torch.float64)
    layer.keys = layer.keys.to(DEVICE)
    dropped = normalise(norm.to(DEVICE), x.to(DEVICE), dropout=layer) == 0
    assert torch.equal(dropped.cpu(), expected) and 0.3 < float(expected.double().mean()) < 0.5


@needs_kernel
@pytest.mark.gpu
@pytest.mark.parametrize("biases", [0, 2])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_scaled_sum_and_its_gradients_are_those_of_float64(monkeypatch, biases, dtype, bound):
    """At 96 channels and 3 x 11 x 11 pixels, which fill no tile."""
    draw = torch.Generator().manual_seed(3)
    h, x, direction = (torch.randn(3, 96, 11, 11, generator=draw).to(dtype) for _ in range(3))
    added = [torch.randn(96, generator=draw) for _ in range(biases)]

    def run(device: str, to: torch.dtype) -> list[torch.Tensor]:
        images = [t.to(device, to).contiguous(memory_format=torch.channels_last).requires_grad_() for t in (h, x)]
        own = [b.to(device, torch.float64 if to == torch.float64 else torch.float32).requires_grad_() for b in added]
        y = add_scaled(*images, 0.5**0.5, own)
        return [y.detach(), *torch.autograd.grad(y, [*images, *own], direction.to(device, y.dtype))]

    expected = run("cpu", torch.float64)
    if INTERPRETED:
        monkeypatch.setattr("edm_ray.networks.normalise.one_kernel", lambda x: x.dtype != torch.float64)
    got = run(DEVICE, dtype)
    assert got[0].dtype == dtype
    for value, truth in zip(got, expected, strict=True):
        assert (value.cpu().double() - truth).abs().max() < bound * truth.abs().max()


@needs_kernel
@pytest.mark.gpu
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_resampling_and_its_gradient_are_those_of_float64(monkeypatch, up, dtype, bound):
    """At 96 channels and sides of 6 and 10, which fill no tile."""
    layer, draw = Conv2d(96, 96, 0, up=up, down=not up), torch.Generator().manual_seed(4)
    x = torch.randn(2, 96, 6, 10, generator=draw).to(dtype)
    direction = torch.randn(layer(x.double()).shape, generator=draw).to(dtype)

    def run(device: str, to: torch.dtype) -> list[torch.Tensor]:
        leaf = x.to(device, to).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = layer.to(device)(leaf)
        return [y.detach(), *torch.autograd.grad(y, leaf, direction.to(device, y.dtype))]

    expected = run("cpu", torch.float64)
    if INTERPRETED:
        monkeypatch.setattr("edm_ray.networks.layers.one_kernel", lambda x: True)
    for value, truth in zip(run(DEVICE, dtype), expected, strict=True):
        assert value.dtype == dtype and value.is_contiguous(memory_format=torch.channels_last)
        assert (value.cpu().double() - truth).abs().max() < bound * truth.abs().max()


@needs_kernel
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("first", "second"), [(64, 96), (20, 12)])
def test_channels_are_joined_and_their_gradient_is_split(monkeypatch, first, second, dtype):
    """To the bit, at 3 x 11 x 7 pixels, which fill no tile."""
    draw = torch.Generator().manual_seed(5)
    parts = [torch.randn(3, channels, 11, 7, generator=draw).to(dtype) for channels in (first, second)]
    direction = torch.randn(3, first + second, 11, 7, generator=draw).to(dtype)

    def run(device: str) -> list[torch.Tensor]:
        leaves = [t.to(device).contiguous(memory_format=torch.channels_last).requires_grad_() for t in parts]
        y = concatenate(*leaves)
        return [y.detach().cpu(), *(each.cpu() for each in torch.autograd.grad(y, leaves, direction.to(device)))]

    expected = run("cpu")
    if INTERPRETED:
        monkeypatch.setattr("edm_ray.networks.normalise.one_kernel", lambda x: True)
    for value, truth in zip(run(DEVICE), expected, strict=True):
        assert torch.equal(value, truth) and value.is_contiguous(memory_format=torch.channels_last)
