"""What people use otherwise, on the same chunks and seeds: full grid, random search, TPE, successive halving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.dimensions import Choice, Dimension, Range
from edm_ray.search.objective import Objective, Outcome
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.space import Space
from edm_ray.search.strategy import Batches, Search, Strategy

ETA = 3
"""Successive halving keeps one of three, and gives it three times the chunks."""
BATCH = 8
MOST_TRIES = 50
"""For each sampler that a random draw should give: enough for spaces in which most points are the same sampler."""


@dataclass(frozen=True, kw_only=True)
class GridSearch(Strategy):
    """Every point of the space at ``max_chunks``."""

    name: ClassVar[str] = "grid"

    points: int = 5
    """Number of values that each range of the space is cut into."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(1, "points")

    def most_chunks(self, num_given: int, space: Space, objective: Objective) -> int:
        return (num_given + (space.count(self.points) or 0)) * self.max_chunks

    def run(self, search: Search) -> Batches:
        labels = list(search.registry.given)
        for number, point in enumerate(search.space.every(self.points), 1):
            label = search.registry.add(point, f"grid {number}")
            if label is not None and label not in labels:
                labels.append(label)
        return _lowest((yield from search.look(labels, self.max_chunks, self.name)), search, self.z)


@dataclass(frozen=True, kw_only=True)
class Counted(Strategy):
    """A strategy that tries a number of points."""

    num: int = 24
    """Number of points to try."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0, "num")

    def most_chunks(self, num_given: int, space: Space, objective: Objective) -> int:
        return (num_given + self.num) * self.max_chunks

    def _draw(self, search: Search) -> list[str]:
        """Different samplers at random points."""
        rng = np.random.default_rng([search.seed, 0x5EED])
        labels: list[str] = []
        for _ in range(MOST_TRIES * self.num):
            if len(labels) == self.num:
                break
            point = search.space.at(rng.random(len(search.space.search)).tolist())
            label = search.registry.add(point, f"{self.name} {len(labels) + 1}")
            if label is not None and label not in search.space.starts and label not in labels:
                labels.append(label)
        return [label for label in labels if label != DETERMINISTIC]


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Counted):
    """Points at random, each at ``max_chunks``."""

    name: ClassVar[str] = "random"

    def run(self, search: Search) -> Batches:
        labels = [*search.registry.given, *self._draw(search)]
        return _lowest((yield from search.look(labels, self.max_chunks, self.name)), search, self.z)


@dataclass(frozen=True, kw_only=True)
class Halving(Counted):
    """Successive halving of random points, from ``initial_chunks`` to ``max_chunks``: ASHA (Li et al. 2020) in step.

    No rung begins before the last one has ended, so that nothing depends on which result comes first. It compares FIDs
    alone, not pairs.
    """

    name: ClassVar[str] = "asha"

    initial_chunks: int = 6
    """Chunks of a sampler's first look."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(1, "initial_chunks")
        if self.max_chunks < self.initial_chunks:
            raise InputError(f"max_chunks={self.max_chunks} is not allowed: at least {self.initial_chunks}")

    @property
    def first_chunks(self) -> int:
        return self.initial_chunks

    def most_chunks(self, num_given: int, space: Space, objective: Objective) -> int:
        """Every rung costs about as much as the first, since a third stays and gets three times as much."""
        rungs, chunks = 1, self.initial_chunks
        while chunks < self.max_chunks:
            rungs, chunks = rungs + 1, ETA * chunks
        return rungs * (num_given + self.num + 3) * self.initial_chunks

    def run(self, search: Search) -> Batches:
        alive, chunks = [*search.registry.given, *self._draw(search)], self.initial_chunks
        while True:
            found = yield from search.look(alive, chunks, f"rung {chunks}")
            if len(found) < 2 or chunks >= self.max_chunks or search.log.stopped:
                return _lowest(found, search, self.z)
            alive = list(found)[: max(2, -(-len(found) // ETA))]
            chunks = min(ETA * chunks, self.max_chunks)


@dataclass(frozen=True, kw_only=True)
class TPE(Counted):
    """Points of Optuna's TPE, in batches, each at ``max_chunks``."""

    name: ClassVar[str] = "optuna"

    def run(self, search: Search) -> Batches:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of independent sampling, which is meant
        sampler = optuna.samplers.TPESampler(seed=search.seed, constant_liar=True, multivariate=True)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        labels, tries = list(search.registry.given), 0
        yield from search.look(labels, self.max_chunks, self.name)
        while len(labels) < len(search.space.starts) + 1 + self.num and tries < 4 * self.num:
            asked: list[tuple[Any, str | None]] = []
            for _ in range(BATCH):
                tries += 1
                trial = study.ask()
                point = {name: _suggested(trial, name, where) for name, where in search.space.search.items()}
                label = search.registry.add(point, f"{self.name} {len(labels)}")
                asked.append((trial, label))
                if label is not None and label not in labels:
                    labels.append(label)
            yield from search.look([label for _, label in asked if label], self.max_chunks, self.name)
            for trial, label in asked:
                estimate = search.trials.estimate(label, self.max_chunks) if label else None
                state = optuna.trial.TrialState.FAIL if estimate is None else None
                study.tell(trial, None if estimate is None else estimate.debiased, state=state)
            if search.log.stopped:
                break
        return _lowest(search.trials.at(self.max_chunks), search, self.z)


def _lowest(found: Mapping[str, FidEstimate], search: Search, z: float) -> Outcome:
    """The lowest debiased FID; those within z standard errors are tied."""
    tied = []
    order = list(found)
    for label in order[1:]:
        gap, se = paired_difference(found[label], found[order[0]])
        if gap <= z * se:
            tied.append(label)
    return search.outcome(found, tied)


def _suggested(trial: Any, name: str, where: Dimension) -> Any:
    """Optuna's own choice within a dimension; grids by index, so that it knows their order."""
    if isinstance(where, Range):
        if where.integer:
            return trial.suggest_int(name, int(where.low), int(where.high), log=where.scale == "log")
        return trial.suggest_float(name, where.low, where.high, log=where.scale == "log")
    values = where.values()
    if isinstance(where, Choice):
        return values[trial.suggest_categorical(name, list(range(len(values))))]
    return values[trial.suggest_int(name, 0, len(values) - 1)]
