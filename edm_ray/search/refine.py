"""Refinement of a sampler's noise levels, one by one, by the FID itself.

Every level is moved up and down by a share of its gap in ln sigma, all moves on the same few chunks as the sampler they
start from. The moves that help are made together too, and what is better on twice the chunks is moved from next; where
nothing is, the moves get smaller. No model is asked: paired FIDs of samplers that differ in one level are close.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from edm_ray.diffusion.samplers import Sampler
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.levels import moved, with_levels
from edm_ray.search.strategy import Search
from edm_ray.search.trials import Evaluation

SHARES = (0.4, 0.2, 0.1)
"""Of a gap in ln sigma, from the first moves to the last."""
CLEAR = 1.0
"""Standard errors of the paired difference by which a move must help to be made together with others."""
STAGE = "refine"


@dataclass(frozen=True)
class Move:
    """Of one level of a sampler."""

    index: int
    share: float


class Refinement:
    """Moves the levels of one sampler of a search."""

    def __init__(self, search: Search, least_left: float) -> None:
        """least_left: of what the search may spend, the share that it leaves."""
        self.search, self.least_left = search, least_left
        self._count = 0

    def run(self, label: str) -> Generator[list[Evaluation], None, str]:
        """The label of the best that was found, ``label`` itself where no move helps."""
        chunks = self.search.log.first_chunks
        for share in SHARES:
            while self.search.budget.share_left() > self.least_left:
                better = yield from self._round(label, share, chunks)
                if better == label:
                    break
                label = better
        return label

    def _round(self, label: str, share: float, chunks: int) -> Generator[list[Evaluation], None, str]:
        moves = self._moves(label, share)
        if not self._can_pay([label, *moves], chunks):
            return label
        found = yield from self.search.look([label, *moves], chunks, STAGE)
        if label not in found:
            return label
        helping = self._helping(label, moves, found)
        if not helping:
            return label
        together = self._entered(label, list(helping.values()))
        first = next(iter(helping))
        again = list(dict.fromkeys([label, first, *([together] if together else [])]))
        if not self._can_pay(again, 2 * chunks):
            return first
        found = yield from self.search.look(again, 2 * chunks, STAGE)
        return next(iter(found), label)

    def _can_pay(self, labels: list[str], chunks: int) -> bool:
        """Half a round tells nothing: the levels come in order."""
        wanted = self.search.evaluations(labels, chunks, STAGE)
        return self.search.budget.affordable(wanted) == len(wanted)

    def _moves(self, label: str, share: float) -> dict[str, Move]:
        """Label -> move, of those that are samplers."""
        count = len(self._levels(label))
        moves = [Move(index, sign * share) for index in range(count) for sign in (1, -1)]
        entered = {self._entered(label, [move]): move for move in moves}
        return {name: move for name, move in entered.items() if name is not None and name != label}

    def _helping(self, label: str, moves: Mapping[str, Move], found: Mapping[str, FidEstimate]) -> dict[str, Move]:
        """The better move of each level that clearly helps, the best first."""
        best: dict[int, str] = {}
        for name in found:  # in the order of their FID
            if name in moves and self._helps(found[name], found[label]):
                best.setdefault(moves[name].index, name)
        return {name: moves[name] for name in best.values()}

    @staticmethod
    def _helps(one: FidEstimate, than: FidEstimate) -> bool:
        gap, se = paired_difference(one, than)
        return gap < -CLEAR * se

    def _entered(self, label: str, moves: list[Move]) -> str | None:
        """Registers the sampler with these moves; None where it is none, as where levels would meet."""
        levels = self._levels(label)
        made = list(levels)
        for move in moves:
            made[move.index] = moved(levels, move.index, move.share)[move.index]
        registry = self.search.registry
        changed = with_levels(registry.samplers[label], made, registry.denoiser)
        if changed is None or changed.nfe != registry.samplers[label].nfe:
            return None
        return registry.name(changed, f"refined {self._next()}", registry.points[label])

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _levels(self, label: str) -> list[float]:
        sampler: Sampler = self.search.registry.samplers[label]
        return sampler.noise_levels(self.search.registry.denoiser)
