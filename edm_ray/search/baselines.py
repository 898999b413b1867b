"""What people use otherwise, on the same chunks and seeds: full grid, random search, TPE, successive halving."""

from __future__ import annotations

from typing import Any

import numpy as np

from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.dimensions import Choice, Range
from edm_ray.search.strategy import DETERMINISTIC, Batches, Strategy

ETA = 3
"""Successive halving keeps one of three, and gives it three times the chunks."""
BATCH = 8
MOST_TRIES = 50
"""For each setting that a random draw should give: enough for spaces in which most points are the same sampler."""


class Baseline(Strategy):
    """Parts of the four."""

    def draw(self, count: int) -> list[str]:
        """Different samplers at random points."""
        rng = np.random.default_rng([self.seed, 0x5EED])
        labels: list[str] = []
        for _ in range(MOST_TRIES * count):
            if len(labels) == count:
                break
            point = self.space.at(rng.random(len(self.space.search)).tolist())
            label = self.add(point, f"{self.name} {len(labels) + 1}")
            if label is not None and label not in self.space.starts and label not in labels:
                labels.append(label)
        return [label for label in labels if label != DETERMINISTIC]

    def take_best(self, found: dict[str, FidEstimate]) -> None:
        """Settle on the lowest debiased FID; those within z standard errors are tied."""
        order = list(found)
        tied = []
        for label in order[1:]:
            gap, se = paired_difference(found[label], found[order[0]])
            if gap <= self.plan.z * se:
                tied.append(label)
        self.settle(found, tied)


class GridSearch(Baseline):
    """Every point of the space (ranges cut into ``grid_points`` values) at ``max_chunks``."""

    name = "grid"

    def search(self) -> Batches:
        self.first_chunks = self.plan.max_chunks
        labels = list(self.settings)
        for number, point in enumerate(self.space.every(self.plan.grid_points), 1):
            label = self.add(point, f"grid {number}")
            if label is not None and label not in labels:
                labels.append(label)
        self.take_best((yield from self.look(labels, self.plan.max_chunks, "grid", partial=True)))


class RandomSearch(Baseline):
    """``num_global`` points at random, at ``max_chunks``."""

    name = "random"

    def search(self) -> Batches:
        self.first_chunks = self.plan.max_chunks
        labels = [*self.settings, *self.draw(self.plan.num_global)]
        self.take_best((yield from self.look(labels, self.plan.max_chunks, "random", partial=True)))


class Asha(Baseline):
    """Successive halving of ``num_global`` random points, from ``initial_chunks`` to ``max_chunks``.

    Rungs are synchronous, so that nothing depends on who answers first; it looks at FIDs alone, not at pairs.
    """

    name = "asha"

    def search(self) -> Batches:
        alive, chunks = [*self.settings, *self.draw(self.plan.num_global)], self.plan.initial_chunks
        while True:
            found = yield from self.look(alive, chunks, f"rung {chunks}", partial=True)
            if len(found) < 2 or chunks >= self.plan.max_chunks or self.stopped:
                self.take_best(found)
                return
            alive = list(found)[: max(2, -(-len(found) // ETA))]
            chunks = min(ETA * chunks, self.plan.max_chunks)


class OptunaSearch(Baseline):
    """``num_global`` points of Optuna's TPE, at ``max_chunks``, in batches."""

    name = "optuna"

    def search(self) -> Batches:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of independent sampling, which is meant
        sampler = optuna.samplers.TPESampler(seed=self.seed, constant_liar=True, multivariate=True)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        self.first_chunks = chunks = self.plan.max_chunks
        labels = list(self.settings)
        yield from self.look(labels, chunks, "optuna", partial=True)
        tries = 0
        while len(labels) < len(self.space.starts) + 1 + self.plan.num_global and tries < 4 * self.plan.num_global:
            asked: list[tuple[Any, str | None]] = []
            for _ in range(BATCH):
                tries += 1
                trial = study.ask()
                point = {name: _suggest(trial, name, where) for name, where in self.space.search.items()}
                label = self.add(point, f"optuna {len(labels)}")
                asked.append((trial, label))
                if label is not None and label not in labels:
                    labels.append(label)
            yield from self.look([label for _, label in asked if label], chunks, "optuna", partial=True)
            for trial, label in asked:
                estimate = self.estimate(label, chunks) if label else None
                state = optuna.trial.TrialState.FAIL if estimate is None else None
                study.tell(trial, None if estimate is None else estimate.debiased, state=state)
            if self.stopped:
                break
        self.take_best(
            (yield from self.look([label for label in labels if self.estimate(label, chunks)], chunks, "optuna"))
        )


def _suggest(trial: Any, name: str, where: Any) -> Any:
    """Optuna's own choice within a dimension; grids by index, so that it knows their order."""
    if isinstance(where, Range):
        if where.integer:
            return trial.suggest_int(name, int(where.low), int(where.high), log=where.scale == "log")
        return trial.suggest_float(name, where.low, where.high, log=where.scale == "log")
    values = where.values()
    if isinstance(where, Choice):
        return values[trial.suggest_categorical(name, list(range(len(values))))]
    return values[trial.suggest_int(name, 0, len(values) - 1)]
