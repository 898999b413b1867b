"""`race` with Optuna's Gaussian process proposing, beside scikit-learn's, which it has: whose is better here?"""

from __future__ import annotations

import math
from typing import Any

import optuna

from edm_ray.search.dimensions import Grid
from edm_ray.search.race import Race

TRIES = 4
"""For each proposal: Optuna may propose what was seen before."""


class OptunaRace(Race):
    """Of grids only, whose values are numbered, so that their order is known. Says nothing of the gain it expects."""

    name = "race, Optuna's GP"

    def _propose(self, count: int, enough: float) -> tuple[list[str], float]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        search: dict[str, Grid] = {name: where for name, where in self.space.search.items() if isinstance(where, Grid)}
        where = {name: optuna.distributions.IntDistribution(0, len(grid.values()) - 1) for name, grid in search.items()}
        sampler = optuna.samplers.GPSampler(seed=self.seed + len(self.answers), n_startup_trials=0)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        for label, estimate in self._seen().items():
            params = self._numbers(label, search)
            if params is not None:
                value = math.log(max(estimate.debiased, 1e-12))
                study.add_trial(optuna.trial.create_trial(params=params, distributions=where, value=value))
        labels: list[str] = []
        for _ in range(TRIES * count):
            if len(labels) == count:
                break
            params = study.ask(where).params
            label = self._new({name: search[name].values()[number] for name, number in params.items()}, "model")
            if label is not None and label not in labels:
                labels.append(label)
        return labels, math.inf

    def _numbers(self, label: str, search: dict[str, Grid]) -> dict[str, Any] | None:
        """Where a setting is on the grids; None where it is not on them."""
        point = self.points[label]
        if any(point.get(name) not in grid.values() for name, grid in search.items()):
            return None
        return {name: list(grid.values()).index(point[name]) for name, grid in search.items()}
