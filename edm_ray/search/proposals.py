"""Which samplers a race looks at next: points that a model of the FID expects most of, and points beside the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import qmc

from edm_ray.search.space import Point
from edm_ray.search.strategy import Search
from edm_ray.search.surrogate import Array, Surrogate

CANDIDATES = 1024
FEWEST_SEEN = 4
"""Below it there is nothing to model."""
RULED_OUT = 2.0
"""A neighbour is not looked at when the model puts it so many standard deviations above the best."""
MOST_NEW = 8
"""Neighbours that join one round of polishing."""


class Proposals:
    """Registers new samplers in a search and returns their labels."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self._count = 0

    def spread(self, count: int) -> list[str]:
        """``count`` Sobol points that are samplers not known yet, as far as there are any."""
        labels: list[str] = []
        if not count:
            return labels
        space = self.search.space
        sobol = qmc.Sobol(len(space.search), scramble=True, rng=self.search.seed)
        for shares in sobol.random(1 << (8 * count - 1).bit_length()).tolist():
            label = f"global {len(labels) + 1}"
            if self.search.registry.add(space.at(shares), label) == label:
                labels.append(label)
            if len(labels) == count:
                break
        return labels

    def expected_best(self, count: int, enough: float) -> tuple[list[str], float]:
        """Points of greatest expected improvement, and that of the first, as a share of the FID; none below ``enough``.

        Each is taken to be as the model says before the next is chosen.
        """
        points, promised = self._candidates(), 0.0
        if len(self.search.trials.longest()) < FEWEST_SEEN or not points:
            return [], promised
        model, means = self._model()
        features = np.asarray([self.search.space.features(point) for point in points])
        to_beat = self._each_to_beat(points, means)
        labels: list[str] = []
        for number in range(min(count, len(points))):
            gains = model.improvement(features, to_beat)
            pick = int(np.argmax(gains))
            if number == 0:
                promised = float(gains[pick])
                if promised < enough:
                    break
            label = self.register(points.pop(pick), "model")
            model.believe(features[pick])
            features, to_beat = np.delete(features, pick, axis=0), np.delete(to_beat, pick)
            if label is not None:
                labels.append(label)
        return labels, promised

    def beside(self, alive: Sequence[str], around: Sequence[str], spacing: float) -> list[str]:
        """New samplers that differ from one of ``around`` in one value, best expected first.

        Without those that the model rules out against the best of ``alive``.
        """
        registry, space = self.search.registry, self.search.space
        points = [
            {**registry.points[label], name: value}
            for label in around
            for name, where in space.search.items()
            for value in where.beside(registry.points[label][name], spacing)
        ]
        points = [point for point in points if registry.is_new(point)]
        if not points:
            return []
        model, means = self._model()
        to_beat = self._each_to_beat(points, {label: means[label] for label in alive})
        mean, deviation = model.predict(np.asarray([space.features(point) for point in points]))
        above = (mean - to_beat) / np.maximum(deviation, 1e-9)
        labels: list[str] = []
        for index in np.argsort(above, kind="stable"):
            if above[index] > RULED_OUT or len(labels) == MOST_NEW:
                break
            label = self.register(points[index], "polish")
            if label is not None and label not in labels:
                labels.append(label)
        return labels

    def register(self, point: Point, kind: str) -> str | None:
        """The label of a point, ``kind`` and a number when it is new."""
        label = f"{kind} {self._count + 1}"
        entered = self.search.registry.add(point, label)
        self._count += entered == label
        return entered

    def _model(self) -> tuple[Surrogate, Mapping[str, float]]:
        """The model of all that was seen, and its mean of log FID at each label."""
        found = self.search.trials.longest()
        model = Surrogate(
            [self.search.space.features(self.search.registry.points[label]) for label in found],
            [estimate.debiased for estimate in found.values()],
            [estimate.n for estimate in found.values()],
        )
        return model, dict(zip(found, model.predict(model.x)[0].tolist(), strict=True))

    def _candidates(self) -> list[Point]:
        """Points whose sampler is not known yet: all of a small space, else Sobol points."""
        space = self.search.space
        count = space.count()
        if count is not None and count <= 4 * CANDIDATES:
            points = space.every()
        else:
            seed = self.search.seed + 1 + len(self.search.trials)
            sobol = qmc.Sobol(len(space.search), scramble=True, rng=seed)
            points = [space.at(shares) for shares in sobol.random(CANDIDATES).tolist()]
        return [point for point in points if self.search.registry.is_new(point)]

    def _each_to_beat(self, points: Sequence[Point], means: Mapping[str, float]) -> Array:
        """For each point the lowest mean among what costs no more."""
        if not self.search.objective.nfe:
            return np.full(len(points), min(means.values()))
        costs = [self.search.objective.cost(self.search.space.settings(point)) for point in points]
        values = {cost: self._to_beat(means, cost) for cost in set(costs)}
        return np.array([values[cost] for cost in costs])

    def _to_beat(self, means: Mapping[str, float], cost: int) -> float:
        below = [mean for label, mean in means.items() if self.search.cost(label) <= cost]
        return min(below) if below else max(means.values())
