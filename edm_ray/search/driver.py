"""Runs a strategy: hands out what it asks, tells it the results, and confirms what it found on fresh seeds.

Whoever evaluates asks and tells (Ray Tune does, `run` does without Ray), in any order within a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import Any, Literal, Protocol

from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.budget import Budget, BudgetSpent, Sizes
from edm_ray.search.objective import MOST_OF_FRONT, Objective, Outcome
from edm_ray.search.plan import SweepPlan
from edm_ray.search.registry import DETERMINISTIC, Registry
from edm_ray.search.space import Space
from edm_ray.search.strategy import SPENT, Log, Search
from edm_ray.search.trials import Evaluation, TrialResult

ALWAYS_CONFIRMED = 3
"""The best, the runner-up and deterministic sampling (at a budget of evaluations the best unsearched solver)."""


class AskTell(Protocol):
    """What hands out evaluations and is told of them: a driver, or the races of a sweep."""

    @property
    def plan(self) -> SweepPlan: ...

    @property
    def finished(self) -> bool: ...

    @property
    def baseline(self) -> Sampler: ...

    @property
    def searched(self) -> tuple[str, ...]: ...

    def ask(self) -> list[Evaluation]: ...

    def tell(self, evaluation_id: str, estimate: FidEstimate, seconds: float = 0.0) -> TrialResult: ...

    def tell_failure(self, evaluation_id: str, message: str) -> TrialResult: ...

    def limit_evaluations(self, count: int) -> None: ...


class Driver:
    """State of one sweep. Raises InputError when the plan's budget is too small to confirm anything."""

    def __init__(self, space: Space, plan: SweepPlan, seed: int = 0, denoiser: Any = None) -> None:
        self._plan, self._seed, self._denoiser = plan, seed, denoiser
        self._limit: int | None = None
        self.search = _search(space, plan, seed, denoiser)
        self.outcome = Outcome()
        """Once the search has ended."""
        self.stage: Literal["search", "confirm", "done"] = "search"
        self._batch: list[Evaluation] = []
        self._asked: set[str] = set()
        self._pending: dict[str, TrialResult] = {}
        self._program = self._run()
        self._next()

    @property
    def plan(self) -> SweepPlan:
        return self._plan

    @property
    def nfe(self) -> int | None:
        """The budget of network evaluations an image, where there is one."""
        return self.search.space.nfe

    @property
    def baseline(self) -> Sampler:
        """The space's own sampler."""
        return self.search.registry.samplers[DETERMINISTIC]

    @property
    def searched(self) -> tuple[str, ...]:
        """Settings that its space searches."""
        return self.search.space.searched

    def limit_evaluations(self, count: int) -> None:
        """As `Budget.limit_evaluations`."""
        self.search.budget.limit_evaluations(count)
        self._limit = count

    def most_images(self, more_starts: int = 0) -> int:
        """Upper bound of the images of the whole sweep, with so many starts more than its space has."""
        search, strategy = self.search, self._plan.strategy
        given = len(search.registry.given)
        chunks = [strategy.most_chunks(n, search.space, search.objective) for n in (given, given + more_starts)]
        most = search.budget.most_images + (chunks[1] - chunks[0]) * self._plan.chunk_size
        return min(most, self._plan.budget_images or most)

    def over(self, space: Space) -> Driver:
        """The same sweep over another space, from its beginning."""
        other = Driver(space, self._plan, self._seed, self._denoiser)
        if self._limit is not None:
            other.limit_evaluations(self._limit)
        return other

    def describe(self) -> str:
        """What will be done, in a sentence."""
        strategy, budget, size = self.plan.strategy, self.search.budget, self.plan.chunk_size
        looks = " to ".join(f"{chunks * size:,}" for chunks in sorted({strategy.first_chunks, strategy.max_chunks}))
        return (
            f"{strategy.name}, {looks} images a setting, up to {budget.num_confirmed} settings confirmed on "
            f"{self.plan.confirm_chunks * size:,} fresh ones each; at most {budget.most_images:,} images"
        )

    def ask(self) -> list[Evaluation]:
        """Evaluations to run now; each is handed out once. Empty while others are awaited, and when all is done."""
        new = [evaluation for evaluation in self._batch if evaluation.id not in self._asked]
        self._asked |= {evaluation.id for evaluation in new}
        return new

    def tell(self, evaluation_id: str, estimate: FidEstimate, seconds: float = 0.0) -> TrialResult:
        """The FID of an evaluation. One that is not a number counts as a failure."""
        values = (estimate.fid, estimate.debiased, estimate.se, *estimate.influence)
        if not all(math.isfinite(value) for value in values):
            return self.tell_failure(evaluation_id, f"FID is {estimate.fid}")
        return self._record(TrialResult(evaluation=self._find(evaluation_id), estimate=estimate, seconds=seconds))

    def tell_failure(self, evaluation_id: str, message: str) -> TrialResult:
        """The sweep continues without this sampler; it is listed as failed."""
        return self._record(TrialResult(evaluation=self._find(evaluation_id), failure=message))

    @property
    def finished(self) -> bool:
        return self.stage == "done"

    @property
    def trials(self) -> list[TrialResult]:
        """All results so far, in the order of asking."""
        pending = (self._pending[each.id] for each in self._batch if each.id in self._pending)
        return [*self.search.trials.results.values(), *pending]

    def _run(self) -> Generator[list[Evaluation], None, None]:
        search, decisions = self.search, self.search.log.decisions
        try:
            self.outcome = yield from self.plan.strategy.run(search)
        except BudgetSpent:
            search.log.stopped = SPENT
            decisions.append(f"{SPENT}: the best so far is taken")
            self.outcome = search.outcome(search.trials.at(search.trials.most_chunks()))
        best = self.outcome.best
        if best is None:
            decisions.append("every evaluation failed: there is no best setting")
            return
        self.stage = "confirm"
        labels = self._to_confirm(best)
        decisions.append(f"{best} wins the search; {', '.join(labels)} are confirmed on fresh seeds")
        wanted = search.evaluations(labels, self.plan.confirm_chunks, "confirm", "confirm")
        search.budget.pay(wanted)
        yield wanted

    def _to_confirm(self, best: str) -> list[str]:
        found, paper = self.outcome, self.search.registry.paper
        plain = self.search.best_unsearched() or DETERMINISTIC
        wanted = [best, plain, found.cheapest, paper, found.runner_up, *found.front]
        return list(dict.fromkeys(label for label in wanted if label))[: self.search.budget.num_confirmed]

    def _find(self, evaluation_id: str) -> Evaluation:
        found = next((evaluation for evaluation in self._batch if evaluation.id == evaluation_id), None)
        assert found is not None, f"{evaluation_id} was not asked for, or was answered before"
        return found

    def _record(self, result: TrialResult) -> TrialResult:
        self._pending[result.evaluation.id] = result
        if len(self._pending) == len(self._batch):
            self._next()
        return result

    def _next(self) -> None:
        """Take the batch's results in, in the order of asking, and resume the strategy until its next batch."""
        self.search.trials.results |= {each.id: self._pending[each.id] for each in self._batch}
        self._batch, self._pending = [], {}
        try:
            while not self._batch:
                self._batch = next(self._program)
        except StopIteration:
            self.stage = "done"


def _search(space: Space, plan: SweepPlan, seed: int, denoiser: Any) -> Search:
    """What the plan's strategy works with."""
    strategy = plan.strategy
    objective = Objective(nfe="nfe" in plan.objective, within=plan.within)
    log = Log(first_chunks=strategy.first_chunks)
    registry = Registry(space, denoiser, log.decisions)
    sizes = Sizes(
        chunk_size=plan.chunk_size,
        search_chunks=strategy.most_chunks(len(registry.given), space, objective),
        confirm_chunks=plan.confirm_chunks,
        num_confirmed=ALWAYS_CONFIRMED + (registry.paper is not None) + (MOST_OF_FRONT if objective.nfe else 0),
    )
    budget = Budget(sizes, registry, log.decisions)
    if plan.budget_images is not None:
        budget.limit_images(plan.budget_images, strategy.first_chunks)
    return Search(registry, budget, log, objective, seed)


def run(
    driver: AskTell,
    measure: Callable[[Evaluation], FidEstimate],
    on_trial: Callable[[TrialResult], None] = lambda result: None,
) -> None:
    """A sweep to its end, one evaluation after the other. What ``measure`` raises is that trial's failure."""
    while not driver.finished:
        for evaluation in driver.ask():
            began = time.monotonic()
            try:
                estimate = measure(evaluation)
            except InputError as error:
                on_trial(driver.tell_failure(evaluation.id, str(error)))
            except Exception as error:
                on_trial(driver.tell_failure(evaluation.id, f"{type(error).__name__}: {error}"))
            else:
                on_trial(driver.tell(evaluation.id, estimate, time.monotonic() - began))
