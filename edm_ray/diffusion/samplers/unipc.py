"""UniPC: a multistep predictor and corrector that share their evaluations (Zhao et al., NeurIPS 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edm_ray.diffusion.samplers.adams import exponential_moments, weights
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.multistep import Multistep
from edm_ray.diffusion.samplers.values import require


@dataclass(frozen=True, kw_only=True)
class UniPC(Multistep):
    """UniP predicts, UniC corrects with the evaluation at the end of the step, which the next step needs anyway.

    In lambda = -ln sigma, data prediction. Of order p, the predictor uses p values of D and the corrector one more, so
    the solver converges with order p + 1. D at the corrected x is not evaluated, and the last noise level, whose D is
    the image, is not corrected.

    Conventions: with one difference of D (order 2 of the predictor, order 1 of the corrector) its weight is B(h) / 2,
    as in the paper, not the solution of its equation. With more, the equations are solved and B(h) cancels: so the
    variants differ in those steps only.
    """

    solver = "unipc"
    orders_allowed: ClassVar[tuple[int, ...]] = (2, 3)
    corrects: ClassVar[bool] = True

    order: int = 3
    """Of the predictor: 2 or 3."""
    variant: str = "bh2"
    """B(h): bh1 is h, bh2 is 1 - exp(-h)."""

    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        now = past[0]
        h = math.log(now.level / after)
        nodes = [math.log(now.level / each.level) / h for each in past[1:]]
        values = [each.denoised for each in past[1:]]
        if ahead is not None:
            nodes, values = [*nodes, 1.0], [*values, ahead]
        first, *rest = exponential_moments(h, len(nodes) + 1)
        x = now.x * math.exp(-h) + now.denoised * first
        if len(nodes) == 1:
            shares = [(h if self.variant == "bh1" else first) / 2 / nodes[0]]
        else:
            shares = _of_differences(nodes, rest)
        return x + sum(share * (value - now.denoised) for share, value in zip(shares, values, strict=True))

    def _check(self) -> None:
        super()._check()
        require(self.variant in ("bh1", "bh2"), "variant", self.variant, "bh1 or bh2")


def _of_differences(nodes: list[float], moments: list[float]) -> list[float]:
    """c with sum_j c_j v_j^k = the k-th moment, k = 1, 2, ..."""
    if not nodes:
        return []
    return [c / v for c, v in zip(weights(nodes, moments), nodes, strict=True)]
