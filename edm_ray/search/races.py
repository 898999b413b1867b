"""The races of a sweep, one after the other: one, or one for every budget of network evaluations.

They share the pool, the store and the seeds, so FIDs of different budgets are paired too. What wins one race starts in
the next, as it is and with the steps of that budget: so more evaluations are worse only where noise hides it. A sweep
that was killed and is run again passes through the races that had ended on what is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from edm_ray.diffusion.analysis.trajectories import Trajectories
from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.budget_space import BudgetSpace
from edm_ray.search.candidates import MOST_CANDIDATES, candidates, wants_candidates
from edm_ray.search.dimensions import Range
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan
from edm_ray.search.trials import Evaluation, TrialResult

INHERITED = 2
"""Starts that a race has from the one before."""


class Races:
    """Asks and is told as one driver is."""

    def __init__(self, drivers: Sequence[Driver]) -> None:
        """drivers: one a race, in the order in which they are run; budgets ascend."""
        self.drivers = list(drivers)

    @property
    def current(self) -> Driver:
        """The one that is run now; the last one when all have ended."""
        return next((each for each in self.drivers if not each.finished), self.drivers[-1])

    @property
    def finished(self) -> bool:
        return self.current.finished

    @property
    def plan(self) -> SweepPlan:
        return self.current.plan

    @property
    def baseline(self) -> Sampler:
        return self.current.baseline

    @property
    def searched(self) -> tuple[str, ...]:
        return self.current.searched

    def ask(self) -> list[Evaluation]:
        return self.current.ask()

    def tell(self, evaluation_id: str, estimate: FidEstimate, seconds: float = 0.0) -> TrialResult:
        return self._told(self.current, self.current.tell(evaluation_id, estimate, seconds))

    def tell_failure(self, evaluation_id: str, message: str) -> TrialResult:
        return self._told(self.current, self.current.tell_failure(evaluation_id, message))

    def _told(self, driver: Driver, result: TrialResult) -> TrialResult:
        """The winner by the search's seeds goes to the next race: those of the confirmation decide nothing."""
        best = driver.outcome.best
        if driver.finished and driver is not self.drivers[-1] and best is not None:
            after = self.drivers.index(driver) + 1
            space = self.drivers[after].search.space
            assert isinstance(space, BudgetSpace)
            winner = driver.search.registry.samplers[best]
            self.drivers[after] = self.drivers[after].over(space.starting_with(f"of {driver.nfe}", winner))
        return result

    @property
    def wants_candidates(self) -> bool:
        """Whether `propose` would add starts."""
        return any(wants_candidates(space) for space in self._budget_spaces().values())

    def propose(self, trajectories: Trajectories) -> None:
        """Stage 0: before the first look, every budget of few steps starts with noise levels chosen on trajectories."""
        for index, space in self._budget_spaces().items():
            if wants_candidates(space):
                found = candidates(space, trajectories)
                self.drivers[index] = self.drivers[index].over(space.with_starts(found))
                self.drivers[index].search.log.decisions.append(f"noise levels from trajectories: {', '.join(found)}")

    def _budget_spaces(self) -> dict[int, BudgetSpace]:
        """Of the races that have one."""
        spaces = {index: driver.search.space for index, driver in enumerate(self.drivers)}
        return {index: space for index, space in spaces.items() if isinstance(space, BudgetSpace)}

    def limit_evaluations(self, count: int) -> None:
        """Shared among the races in proportion to what their samplers cost."""
        costs = [max(each.baseline.nfe, 1) for each in self.drivers]
        for driver, cost in zip(self.drivers, costs, strict=True):
            driver.limit_evaluations(count * cost // sum(costs))

    def describe(self) -> str:
        """What will be done, in a sentence."""
        budgets = [each.nfe for each in self.drivers if each.nfe is not None]
        if not budgets:
            return self.current.describe()
        told = f"{', '.join(map(str, budgets))} network evaluations: {self.drivers[0].describe()}"
        return told if len(budgets) == 1 else f"{told} for the first budget, {self.most_images:,} in all"

    @property
    def most_images(self) -> int:
        """Upper bound of the images of all races before the first has begun; starts that join are counted."""
        return sum(self.most_images_of_each)

    @property
    def most_images_of_each(self) -> list[int]:
        more = MOST_CANDIDATES if self._budget_spaces() else 0
        return [each.most_images(more + (INHERITED if i else 0)) for i, each in enumerate(self.drivers)]


def longest_nfe(driver: Driver) -> int:
    """Network evaluations of the longest sampler of a race. (Those of rk45 are not known, and count none.)"""
    if driver.nfe is not None:
        return driver.nfe
    space, given = driver.search.space, driver.search.registry.samplers.values()
    tops: dict[str, Any] = {}
    for name in ("num_steps", "guidance"):
        if name in space.search:
            where = space.search[name]
            tops[name] = where.high if isinstance(where, Range) else max(where.values())
    solvers = space.search["solver"].values() if "solver" in space.search else [space.sampler.solver]
    found = [each.nfe for each in given]
    for solver in solvers:
        with contextlib.suppress(InputError):  # a solver that cannot be so long
            found.append(space.settings({**tops, "solver": solver}).nfe)
    return max(found)
