"""What is best: the lowest FID, or the front of FID and network evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edm_ray.diffusion.samplers import Sampler
from edm_ray.evaluation.fid import FidEstimate

MOST_OF_FRONT = 4
"""With nfe: so many of the front are confirmed, beside the best."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search ends with; labels of samplers."""

    best: str | None = None
    """None when every evaluation failed."""
    runner_up: str | None = None
    tied: tuple[str, ...] = ()
    """Those that may be as good as the best."""
    front: tuple[str, ...] = ()
    """With nfe: those that nothing cheaper beats, cheapest first."""
    cheapest: str | None = None
    """With nfe: the one of fewest evaluations within so many percent of the best."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """FID alone, or FID and network evaluations."""

    nfe: bool = False
    within: float = 2.0
    """Percent: with nfe the cheapest sampler within so much of the best FID is named."""

    def cost(self, sampler: Sampler) -> int:
        """What a sampler must be worth: its network evaluations with nfe, else nothing."""
        return sampler.nfe if self.nfe else 0

    def outcome(
        self, found: Mapping[str, FidEstimate], samplers: Mapping[str, Sampler], tied: Iterable[str] = ()
    ) -> Outcome:
        """Of estimates at one n, best first."""
        if not found:
            return Outcome()
        order = list(found)
        line = front(found, samplers) if self.nfe else []
        bound = found[order[0]].debiased * (1 + self.within / 100)
        return Outcome(
            best=order[0],
            runner_up=order[1] if len(order) > 1 else None,
            tied=tuple(tied),
            front=tuple(line),
            cheapest=next((label for label in line if found[label].debiased <= bound), None),
        )


def front(found: Mapping[str, FidEstimate], samplers: Mapping[str, Sampler]) -> list[str]:
    """Of estimates in order of FID, those with fewer evaluations than all before: the Pareto front, cheapest first."""
    chosen: list[str] = []
    for label in found:
        if not chosen or samplers[label].nfe < samplers[chosen[-1]].nfe:
            chosen.append(label)
    return chosen[::-1]
