"""What a strategy is, and what it works with. No Ray, no clock, no images.

A strategy is a frozen class of its parameters; `run` is a generator of batches of looks:
``found = yield from search.look(labels, chunks, stage)``. The driver hands a batch out, waits for all of its results
and resumes the generator. So decisions depend on the results alone, not on their order, and a sweep that is run again
on the same chunks decides the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.budget import Budget, BudgetSpent
from edm_ray.search.objective import Objective, Outcome
from edm_ray.search.registry import DETERMINISTIC, Registry
from edm_ray.search.space import Space
from edm_ray.search.statistics import Noise
from edm_ray.search.trials import Evaluation, Pool, Trials, evaluation_id, ranked

Batches = Generator[list[Evaluation], None, Outcome]
Look = Generator[list[Evaluation], None, dict[str, FidEstimate]]
SPENT = "the budget of the search is spent"


@dataclass(kw_only=True)
class Log:
    """What a search notes for its report."""

    first_chunks: int
    """Chunks at which most samplers were first looked at."""
    decisions: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)
    """Samplers on the line of S_churn alone."""
    noise: Noise | None = None
    stopped: str = ""
    """Why the search ended early, if it did."""


class Search:
    """What a strategy works with: the samplers, what was seen of them, what may still be spent."""

    def __init__(self, registry: Registry, budget: Budget, log: Log, objective: Objective, seed: int) -> None:
        self.registry, self.budget, self.log, self.objective, self.seed = registry, budget, log, objective, seed
        self.trials = Trials()

    @property
    def space(self) -> Space:
        return self.registry.space

    def cost(self, label: str) -> int:
        """What a sampler must be worth (`Objective.cost`)."""
        return self.objective.cost(self.registry.samplers[label])

    def best_unsearched(self) -> str | None:
        """Of the space's solvers at their defaults, the best at its first look; None for a space without a budget."""
        labels = {self.registry.labels[name] for name in self.space.unsearched}
        seen = (label for label in self.trials.at(self.log.first_chunks) if label in labels)
        return next(seen, DETERMINISTIC) if labels else None

    def look(self, labels: Iterable[str], chunks: int, stage: str | Callable[[str], str]) -> Look:
        """Evaluate these on the first ``chunks`` chunks: estimates of those that did not fail, best debiased FID first.

        Where the budget does not pay for all, only the first of them; raises BudgetSpent when it pays for none.
        """
        labels = list(dict.fromkeys(labels))
        wanted = self.evaluations(labels, chunks, stage)
        count = self.budget.affordable(wanted)
        if count < len(wanted):
            if not count:
                raise BudgetSpent
            self.log.stopped = SPENT
            self.log.decisions.append(f"the budget allows a look at {count} of {len(labels)} settings only")
        self.budget.pay(wanted[:count])
        if wanted:
            yield wanted[:count]
        found = {label: self.trials.estimate(label, chunks) for label in labels}
        return ranked({label: estimate for label, estimate in found.items() if estimate is not None})

    def evaluations(
        self, labels: Iterable[str], chunks: int, stage: str | Callable[[str], str], seeds: Pool = "search"
    ) -> list[Evaluation]:
        """Those of them that have no result yet."""
        wanted = [
            Evaluation(
                id=evaluation_id(seeds, label, chunks),
                label=label,
                settings=self.registry.samplers[label],
                stage=stage if isinstance(stage, str) else stage(label),
                seeds=seeds,
                chunks=chunks,
            )
            for label in labels
        ]
        return [each for each in wanted if each.id not in self.trials.results]

    def outcome(self, found: Mapping[str, FidEstimate], tied: Iterable[str] = ()) -> Outcome:
        """The end of the search: estimates at one n, the best first, and those that may be as good as the best."""
        return self.objective.outcome(found, self.registry.samplers, tied)


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """How to search: parameters, and the program that they steer."""

    name: ClassVar[str] = ""
    """In files and options."""

    max_chunks: int = 96
    """Chunks of the longest look at a sampler."""
    z: float = 2.5
    """A sampler is dropped when it is worse by this many standard errors of the paired difference."""

    def __post_init__(self) -> None:
        self._require(1, "max_chunks")
        if self.z <= 0 or not math.isfinite(self.z):
            raise InputError(f"z={self.z} is not allowed: greater than 0, finite")

    @property
    def first_chunks(self) -> int:
        """Of a sampler's first look."""
        return self.max_chunks

    @abstractmethod
    def run(self, search: Search) -> Batches:
        """Look for the best sampler: batches of evaluations, and the outcome at the end."""

    @abstractmethod
    def most_chunks(self, num_given: int, space: Space, objective: Objective) -> int:
        """Upper bound of the chunks of the search; ``num_given`` samplers are known before it."""

    def _require(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} is not allowed: {least} or more")
