"""The fused kernel against PyTorch's own operations in float64, on a GPU or in Triton's interpreter on a CPU."""

from __future__ import annotations

import os

import pytest
import torch

from edm_ray.networks.layers import Dropout, GroupNorm
from edm_ray.networks.normalise import Join, has_triton, normalise, plain
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
    "several tiles": {"channels": 256, "side": 24, "join": "offset", "dropout": 0.5},
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
        monkeypatch.setattr("edm_ray.networks.normalise.fused", lambda *args: True)
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
    norm, x, _, layer, _ = _inputs(channels=64, side=8, dropout=0.4)
    if INTERPRETED:
        monkeypatch.setattr("edm_ray.networks.normalise.fused", lambda *args: True)
    norm, x = norm.float().to(DEVICE), x.float().to(DEVICE)
    layer.keys = layer.keys.to(DEVICE)
    assert torch.equal(normalise(norm, x, dropout=layer) == 0, plain(norm, x, dropout=layer) == 0)
