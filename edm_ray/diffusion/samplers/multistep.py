"""What linear multistep solvers share: one evaluation of the denoiser a step, extrapolated from the steps before."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.noise import Path
from edm_ray.diffusion.samplers.base import Noise
from edm_ray.diffusion.samplers.between_levels import BetweenLevels
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.levels import distinct
from edm_ray.diffusion.samplers.values import require


@dataclass(frozen=True, kw_only=True)
class Multistep(BetweenLevels):
    """One evaluation a step. The order rises from 1; subclasses say what one step is.

    Convention: full order is kept into the last noise level sigma_{N-1}, and the step from there to 0 is D itself. Some
    published codes have no such step and end at sigma_{N-1}, others extrapolate into 0.
    """

    most_order: ClassVar[int] = 1
    """Order of a solver that has no setting for it."""
    orders_allowed: ClassVar[tuple[int, ...]] = ()
    """Of one that has: what ``order`` may be."""
    corrects: ClassVar[bool] = False
    """Whether a step is taken again with the evaluation at its end, which is the next step's: no further NFE."""

    lower_order_final: bool = False
    """A step's order is at most the number of steps that are left, the one to 0 included: so 2 into the last noise
    level, 3 into the one before. (Counted without the step to 0, as other codes do, it would be 1 and 2.)"""

    @abstractmethod
    def advance(self, past: list[Evaluation], after: float, ahead: torch.Tensor | None = None) -> torch.Tensor:
        """The mean of one step from past[0] to noise level ``after``.

        past: as many evaluations as the step's order, the latest first. ahead: D at the end of the step, for a solver
        that corrects.
        """

    def spread(self, level: float, after: float) -> float:
        """Standard deviation of the noise that the step adds."""
        return 0.0

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        """Step i uses noise(i), where it adds any; a correction keeps the step's noise."""
        levels, D = distinct(levels[:-1]), self.first_step_free(D)
        orders = self.orders(len(levels))
        past: list[Evaluation] = []
        added: torch.Tensor | None = None
        for i, (level, after) in enumerate(itertools.pairwise(levels)):
            denoised = D(x, level)
            if self.corrects and i > 0:
                x = _plus(self.advance(past[: orders[i - 1]], level, denoised), added)
            past = [Evaluation(level, x, denoised), *past[: self.full_order - 1]]
            spread = self.spread(level, after)
            added = noise(i).to(x) * spread if spread > 0 else None
            x = _plus(self.advance(past[: orders[i]], after), added)
        return D(x, levels[-1])

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[Evaluation]
    ) -> torch.Tensor:
        """Corrected, where the solver corrects (its last step, into the last noise level, is not)."""
        past = [Evaluation(start, x, D(x, start)), *history][: self.full_order]
        predicted = self.advance(past, end)
        return self.advance(past, end, D(predicted, end)) if self.corrects else predicted

    def mean_steps(self, denoiser: Any = None) -> list[tuple[float, float, list[float]]]:
        """With as many levels before each step as its order needs."""
        steps = super().mean_steps(denoiser)
        orders = self.orders(len(steps) + 1)
        return [(a, b, before[: order - 1]) for (a, b, before), order in zip(steps, orders, strict=True)]

    # -- order -------------------------------------------------------------------------------------------------------

    @property
    def full_order(self) -> int:
        order: int = getattr(self, "order", self.most_order)
        return order

    def orders(self, count: int) -> list[int]:
        """The order of each of the ``count`` - 1 steps between as many noise levels."""
        full = [min(self.full_order, i + 1) for i in range(count - 1)]
        return [min(order, count - i) for i, order in enumerate(full)] if self.lower_order_final else full

    def _acting(self, denoiser: Any) -> Self:
        """With the least order that does the same, and lower_order_final only where it lowers any."""
        form = super()._acting(denoiser)
        count = len(distinct(form.noise_levels(denoiser)))
        orders = form.orders(count)
        if self.orders_allowed:
            form = form.replace(order=max(max(orders, default=1), self.orders_allowed[0]))
        plain = form.replace(lower_order_final=False)
        return plain if plain.orders(count) == orders else form

    def _take_plain_types(self) -> None:
        super()._take_plain_types()
        value = self.lower_order_final
        require(isinstance(value, bool), "lower_order_final", value, "true or false")

    def _check(self) -> None:
        super()._check()
        if self.orders_allowed:
            *others, last = map(str, self.orders_allowed)
            require(self.full_order in self.orders_allowed, "order", self.full_order, f"{', '.join(others)} or {last}")
            few = f"at most {self.num_steps}, the number of steps"
            require(self.full_order <= self.num_steps, "order", self.full_order, few)


def _plus(mean: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
    return mean if added is None else mean + added
