"""Who continues in a race: the rules by which samplers drop out as the others are given more images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edm_ray.diffusion.samplers import Sampler
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.objective import Objective, front

FEWEST, FEWEST_OF_FRONT = 3, 8
"""So many continue whatever the doublings; the latter with objective nfe."""


def places(num_finalists: int, doublings: int, objective: Objective) -> int:
    """How many may continue: ``num_finalists`` to the first doubling, half as many to each further one."""
    fewest = FEWEST_OF_FRONT if objective.nfe else FEWEST
    return min(max(num_finalists >> max(doublings, 0), fewest), num_finalists)


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """With objective nfe a sampler is only compared with those that cost no more: one survives for every cost."""

    z: float
    """Standard errors of the paired difference that tell two samplers apart."""
    tie: float
    """Samplers surely closer than this share of the FID are taken for equally good."""
    num_finalists: int
    objective: Objective
    samplers: Mapping[str, Sampler]

    def contenders(self, found: Mapping[str, FidEstimate]) -> dict[str, FidEstimate]:
        """Those of estimates in order of FID that may still be best."""
        return {label: estimate for label, estimate in found.items() if self._may_be_best(label, found)}

    def going_on(self, found: Mapping[str, FidEstimate], doublings: int) -> list[str]:
        """As many as have a place, best first, one of those that are surely equal; with nfe the front comes first."""
        first = front(found, self.samplers)[::-1] if self.objective.nfe else []
        chosen: list[str] = []
        for label in dict.fromkeys([*first, *found]):
            if not any(self._equal(label, other, found) for other in chosen):
                chosen.append(label)
        return chosen[: places(self.num_finalists, doublings, self.objective)]

    def _may_be_best(self, label: str, found: Mapping[str, FidEstimate]) -> bool:
        """False when the best that costs no more is better by z standard errors, or surely as good as makes no odds."""
        rival = next(other for other in found if self._cost(other) <= self._cost(label))
        if rival == label:
            return True
        gap, se = paired_difference(found[label], found[rival])
        return gap <= self.z * se and gap + self.z * se >= self.tie * found[rival].debiased

    def _equal(self, label: str, other: str, found: Mapping[str, FidEstimate]) -> bool:
        """Whether a sampler is surely within ``tie`` of another one that costs no more."""
        if self._cost(other) > self._cost(label):
            return False
        gap, se = paired_difference(found[label], found[other])
        return abs(gap) + self.z * se < self.tie * found[other].debiased

    def _cost(self, label: str) -> int:
        return self.objective.cost(self.samplers[label])
