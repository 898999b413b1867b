"""What the kernels of `networks.kernels` return and keep for the backward pass, without computing it: for plans made on
the meta device, where there is no Triton."""

from __future__ import annotations

from typing import Any

import torch


def How(*what: Any) -> tuple[Any, ...]:
    """As `kernels.How`."""
    return what


class Sketch(torch.autograd.Function):
    """Has no numbers, so no gradient: a plan makes a forward pass only."""

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise AssertionError("a sketch is not differentiated")


class Normalise(Sketch):
    """As `kernels.Normalise`: keeps x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        ctx.save_for_backward(x, *(each for each in rest if isinstance(each, torch.Tensor)))
        return torch.empty_like(x)


class AddScaled(Sketch):
    """As `kernels.AddScaled`: keeps nothing."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, *rest: Any) -> torch.Tensor:
        return torch.empty_like(h)


class Concatenate(Sketch):
    """As `kernels.Concatenate`: keeps nothing."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.new_empty(len(a), a.shape[1] + b.shape[1], *a.shape[2:])


class Resample(Sketch):
    """As `kernels.Resample`: keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, up: bool) -> torch.Tensor:
        height, width = (2 * side if up else side // 2 for side in x.shape[2:])
        return x.new_empty(*x.shape[:2], height, width)
