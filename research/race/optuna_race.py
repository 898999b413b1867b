"""`race` with Optuna's Gaussian process proposing, beside scikit-learn's, which it has: whose is better here?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import optuna

from edm_ray.search.dimensions import Grid
from edm_ray.search.proposals import Proposals
from edm_ray.search.race import Race, RaceRun
from edm_ray.search.strategy import Batches, Search

TRIES = 4
"""For each proposal: Optuna may propose what was seen before."""


@dataclass(frozen=True, kw_only=True)
class OptunaRace(Race):
    """Of grids only, whose values are numbered, so that their order is known."""

    name: ClassVar[str] = "race, Optuna's GP"

    def run(self, search: Search) -> Batches:
        return RaceRun(self, search, OptunaProposals(search)).run()


class OptunaProposals(Proposals):
    """Says nothing of the gain it expects."""

    def expected_best(self, count: int, enough: float) -> tuple[list[str], float]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        search, trials = self.search, self.search.trials
        grids: dict[str, Grid] = {name: each for name, each in search.space.search.items() if isinstance(each, Grid)}
        where = {name: optuna.distributions.IntDistribution(0, len(grid.values()) - 1) for name, grid in grids.items()}
        sampler = optuna.samplers.GPSampler(seed=search.seed + len(trials), n_startup_trials=0)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        for label, estimate in trials.longest().items():
            params = self._numbers(label, grids)
            if params is not None:
                value = math.log(max(estimate.debiased, 1e-12))
                study.add_trial(optuna.trial.create_trial(params=params, distributions=where, value=value))
        labels: list[str] = []
        for _ in range(TRIES * count):
            if len(labels) == count:
                break
            params = study.ask(where).params
            label = self.register({name: grids[name].values()[number] for name, number in params.items()}, "model")
            if label is not None and label not in labels:
                labels.append(label)
        return labels, math.inf

    def _numbers(self, label: str, grids: dict[str, Grid]) -> dict[str, Any] | None:
        """Where a sampler is on the grids; None where it is not on them."""
        point = self.search.registry.points[label]
        if any(point.get(name) not in grid.values() for name, grid in grids.items()):
            return None
        return {name: list(grid.values()).index(point[name]) for name, grid in grids.items()}
