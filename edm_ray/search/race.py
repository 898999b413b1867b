"""The default strategy: look everywhere a little, then ever longer where the best may be.

    measure     four samplers tell how noisy FIDs are; where that hides their differences, the first look takes longer
    first look  deterministic sampling, the named starts, a line over S_churn, Sobol points, all on the same few chunks
    model       a Gaussian process on log FID proposes more, in batches, where it expects the greatest gain, as long as
                it expects any
    polish      a race of the best; then the values beside the survivors that the model does not rule out join them, and
                the race is run again, until nothing beside them is promising
    refine      at a budget of evaluations: the noise levels of the best, moved one by one (`search/refine.py`)
    final       a race of the survivors and of deterministic sampling

A race doubles the chunks of those that may still be best and drops who is worse than the best by z standard errors of
the *paired* difference: all saw the same seeds (common random numbers), so small differences show early. Of samplers
that are surely equal one continues, and each doubling halves how many may: what is saved on many is spent on few.
With objective nfe a sampler is only compared with those that cost no more, so one survives for every cost that pays.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.elimination import Elimination, places
from edm_ray.search.objective import Objective
from edm_ray.search.refine import Refinement
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.space import Space
from edm_ray.search.statistics import measure_noise
from edm_ray.search.strategy import Batches, Search, Strategy
from edm_ray.search.trials import Evaluation

if TYPE_CHECKING:
    from edm_ray.search.proposals import Proposals

BATCH = 6
GAIN = 1e-4
"""Proposals end when two batches in a row promised less, as a share of the FID."""
LEAST_PROPOSED = 30
"""Proposals that are made in any case: a model of few points is too sure of itself."""
RACE_SHARE = 0.4
"""Of the budget: proposals end where less is left, so that there is always a race."""
LEVELS_SHARE, REFINE_SHARE, FINAL_SHARE = 0.5, 0.4, 0.1
"""At a budget of evaluations: what is left of the search's images when proposals, polishing and refinement end."""
NUM_MEASURED = 4
"""Samplers that tell how noisy FIDs are."""
POLISHED = 4
"""Races of polishing end at this part of the longest look (but double once), the last one goes to the end; all do with
objective nfe, where whole fronts are polished and only long looks tell what is on them."""
SPACINGS = (0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625)
"""Distance of neighbours in shares of a range, round by round."""
Raced = Generator[list[Evaluation], None, tuple[dict[str, FidEstimate], list[str]]]


@dataclass(frozen=True, kw_only=True)
class Race(Strategy):
    """See the module. Counts are of samplers, or of chunks."""

    name: ClassVar[str] = "race"

    initial_chunks: int = 6
    """Chunks of a sampler's first look."""
    num_line: int = 5
    """Samplers on the line of S_churn alone (where the space searches it)."""
    num_global: int = 24
    """Samplers spread evenly over the space."""
    num_model: int = 60
    """Samplers that a model of the FID proposes, at most; in batches of six."""
    num_starts: int = 3
    """Survivors of a race whose neighbours are looked at."""
    num_finalists: int = 20
    """Samplers that enter a race, at most; half as many may stay after each doubling of their chunks."""
    refine: bool = True
    """With a budget of network evaluations: move the noise levels of the best sampler one by one."""
    tie: float = 0.003
    """Samplers that surely differ by less than this share of the FID count as equally good."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(1, "initial_chunks", "num_starts")
        self._require(0, "num_line", "num_global", "num_model")
        self._require(2, "num_finalists")
        if self.max_chunks < self.initial_chunks:
            raise InputError(f"max_chunks={self.max_chunks} is not allowed: at least {self.initial_chunks}")

    @property
    def first_chunks(self) -> int:
        return self.initial_chunks

    def most_chunks(self, num_given: int, space: Space, objective: Objective) -> int:
        """race stops there as at a budget (0.98 million images by default, with the confirmation); a sweep commonly
        costs half of it."""
        first = (num_given + self.num_line + self.num_global + self.num_model) * self.initial_chunks
        again = first if objective.nfe else 0  # a whole front is polished
        raced = sum(samplers * chunks for samplers, chunks in rungs(self, objective))
        return first + again + 2 * raced  # twice, since neighbours join

    def run(self, search: Search) -> Batches:
        from edm_ray.search.proposals import Proposals  # scikit-learn: seconds that every other command would wait for

        return RaceRun(self, search, Proposals(search)).run()


def rungs(race: Race, objective: Objective) -> list[tuple[int, int]]:
    """Samplers and further chunks of each, doubling by doubling, of one race in which nobody drops out early."""
    found: list[tuple[int, int]] = []
    chunks = race.initial_chunks
    while chunks < race.max_chunks:
        going = min(2 * chunks, race.max_chunks)
        found.append((places(race.num_finalists, len(found), objective), going - chunks))
        chunks = going
    return found


class RaceRun:
    """One search by a race."""

    def __init__(self, race: Race, search: Search, proposals: Proposals) -> None:
        self.race, self.search, self.proposals = race, search, proposals
        self.rules = Elimination(
            z=race.z,
            tie=race.tie,
            num_finalists=race.num_finalists,
            objective=search.objective,
            samplers=search.registry.samplers,
        )

    def run(self) -> Batches:
        search, longest = self.search, self.race.max_chunks
        labels = self._first()
        chunks = yield from self._measure(labels[:NUM_MEASURED])
        yield from search.look(labels, chunks, self._stage_of)
        yield from self._model(chunks)
        alive = self._going_on(search.trials.at(chunks), 2 * chunks)
        polished = longest if search.objective.nfe else min(longest, max(longest // POLISHED, 2 * chunks))
        for spacing in SPACINGS:
            if search.space.nfe is not None and search.budget.share_left() < REFINE_SHARE:
                break
            found, tied = yield from self._race(alive, "polish", polished)
            alive = [*list(found)[:1], *tied]
            new = self.proposals.beside(alive, self._around(alive), spacing)
            if not new:
                break
            yield from search.look(new, chunks, "polish")
            alive += new
        alive = yield from self._refine(alive)
        found, tied = yield from self._race([*alive, DETERMINISTIC], "final", longest)
        return search.outcome(found, tied)

    def _refine(self, alive: list[str]) -> Generator[list[Evaluation], None, list[str]]:
        """At a budget of evaluations the best with its noise levels refined, before the others."""
        if self.search.space.nfe is None or not self.race.refine:
            return alive
        refined = yield from Refinement(self.search, FINAL_SHARE).run(alive[0])
        return list(dict.fromkeys([refined, *alive]))

    def _first(self) -> list[str]:
        """Deterministic, starts, line, Sobol points."""
        registry, line = self.search.registry, self.search.log.line
        for i in range(1, self.race.num_line + 1):
            settings = self.search.space.with_churn(i / self.race.num_line)
            if settings is not None:
                line.append(registry.enter(f"churn {i}/{self.race.num_line}", settings))
        fresh = self.proposals.spread(self.race.num_global)
        return list(dict.fromkeys([*registry.given, *line, *fresh]))

    def _stage_of(self, label: str) -> str:
        return "line" if label in self.search.log.line else "global" if label.startswith("global ") else "baseline"

    def _measure(self, labels: Sequence[str]) -> Generator[list[Evaluation], None, int]:
        """Chunks of a first look: more where noise hides the differences between a few samplers."""
        chunks, log = self.race.initial_chunks, self.search.log
        while True:
            found = yield from self.search.look(labels, chunks, self._stage_of)
            log.first_chunks = chunks
            if len(found) < 2:
                return chunks
            log.noise = measure_noise(list(found.values()))
            log.decisions.append(log.noise.describe())
            # Four samplers that do not differ at all would spread over one and a half standard errors of a difference.
            if log.noise.paired_se < log.noise.spread / 2 or 8 * chunks > self.race.max_chunks:
                return chunks
            chunks *= 2
            log.decisions.append(f"too noisy to tell settings apart: first looks take {chunks} chunks")

    def _model(self, chunks: int) -> Generator[list[Evaluation], None, None]:
        """Batches of proposals, as long as they promise something and enough is left to race."""
        promised, most = math.inf, self.race.num_model
        for done in range(0, most, BATCH):
            if self.search.budget.share_left() < (RACE_SHARE if self.search.space.nfe is None else LEVELS_SHARE):
                return
            enough = GAIN if done >= LEAST_PROPOSED and promised < GAIN else 0.0
            proposed, promised = self.proposals.expected_best(min(BATCH, most - done), enough)
            if not proposed:
                told = f"{done} proposals; the best of more promises {promised:.3%} of the FID"
                self.search.log.decisions.append(told)
                return
            yield from self.search.look(proposed, chunks, "model")

    def _around(self, alive: Sequence[str]) -> Sequence[str]:
        """Whose neighbours are looked at: the best few, with objective nfe all."""
        return alive[: max(self.race.num_starts, len(set(alive)) if self.search.objective.nfe else 0)]

    def _race(self, labels: Iterable[str], stage: str, most: int) -> Raced:
        """Double the chunks, to ``most``, of those that may still be best.

        Returns the estimates of the last look, best first, and those that are tied with it.
        """
        first = self.search.log.first_chunks
        alive, chunks = list(dict.fromkeys(labels)), first
        while True:
            found = yield from self.search.look(alive, chunks, stage)
            going = min(2 * chunks, max(most, first))
            remaining = self._going_on(self.rules.contenders(found), going)
            if len(remaining) < 2 or chunks >= most:
                return found, remaining[1:]
            alive, chunks = remaining, going

    def _going_on(self, found: dict[str, FidEstimate], chunks: int) -> list[str]:
        """Who continues to so many chunks."""
        return self.rules.going_on(found, round(math.log2(chunks / self.search.log.first_chunks)) - 1)
