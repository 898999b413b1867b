"""The default strategy: look everywhere a little, then ever longer where the best may be.

    measure     four settings tell how noisy FIDs are; where that hides their differences, the first look takes longer
    first look  deterministic sampling, the named starts, a line over S_churn, Sobol points, all on the same few chunks
    model       a Gaussian process on log FID proposes more, in batches, where it expects the greatest gain, as long as
                it expects any
    polish      a race of the best; then the values beside the survivors that the model does not rule out join them, and
                the race is run again, until nothing beside them is promising
    final       a race of the survivors and of deterministic sampling

A race doubles the chunks of those that may still be best and drops who is worse than the best by z standard errors of
the *paired* difference: all saw the same seeds (common random numbers), so small differences show early. Of settings
that are surely equal one goes on, and each doubling halves how many may: what is saved on many buys long looks at few.
With objective nfe a setting is only compared with those that cost no more, so one survives for every cost that pays.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence

import numpy as np
from scipy.stats import qmc

from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.space import Point
from edm_ray.search.statistics import measure_noise
from edm_ray.search.strategy import DETERMINISTIC, Batches, Evaluation, Strategy, front, ranked
from edm_ray.search.surrogate import Array, Surrogate

BATCH = 6
CANDIDATES = 1024
GAIN = 1e-4
"""Proposals end when two batches in a row promised less, as a share of the FID."""
LEAST_PROPOSED = 30
"""Proposals that are made in any case: a model of few points is too sure of itself."""
MOST_NEW = 8
"""Neighbours that join one round of polishing."""
RACE_SHARE = 0.4
"""Of the budget: proposals end where less is left, so that there is always a race."""
RULED_OUT = 2.0
"""A neighbour is not looked at when the model puts it so many standard deviations above the best."""
POLISHED = 4
"""Races of polishing end at this part of the longest look (but double once), the last one goes to the end; all do with
objective nfe, where whole fronts are polished and only long looks tell what is on them."""
SPACINGS = (0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625)
"""Distance of neighbours in shares of a range, round by round."""
Outcome = Generator[list[Evaluation], None, tuple[dict[str, FidEstimate], list[str]]]


class Race(Strategy):
    """See the module."""

    name = "race"
    _count = 0

    @property
    def _nfe(self) -> bool:
        return "nfe" in self.plan.objective

    def search(self) -> Batches:
        labels = self._first()
        chunks = yield from self._measure(labels[:4])
        yield from self.look(labels, chunks, self._kind, partial=True)
        yield from self._model_stage(chunks)
        alive = self._cap(self._at(chunks), 2 * chunks)
        longest = self.plan.max_chunks
        polished = longest if self._nfe else min(longest, max(longest // POLISHED, 2 * chunks))
        for spacing in SPACINGS:
            found, tied = yield from self.race(alive, "polish", polished)
            alive = [*list(found)[:1], *tied]
            new = self._beside(alive, spacing)
            if not new:
                break
            yield from self.look(new, chunks, "polish", partial=True)
            alive += new
        found, tied = yield from self.race([*alive, DETERMINISTIC], "final", longest)
        self.settle(found, tied)

    # -- first look --------------------------------------------------------------------------------------------------

    def _first(self) -> list[str]:
        """Deterministic, starts, line, Sobol points."""
        plan, labels = self.plan, list(self.settings)
        for i in range(1, plan.num_line + 1):
            settings = self.space.with_churn(i / plan.num_line)
            if settings is not None:
                self.line.append(self.enter(f"churn {i}/{plan.num_line}", settings))
        fresh: list[str] = []
        if plan.num_global:
            sobol = qmc.Sobol(len(self.space.search), scramble=True, rng=self.seed)
            for shares in sobol.random(1 << (8 * plan.num_global - 1).bit_length()).tolist():
                label = f"global {len(fresh) + 1}"
                if self.add(self.space.at(shares), label) == label:
                    fresh.append(label)
                if len(fresh) == plan.num_global:
                    break
        return list(dict.fromkeys([*labels, *self.line, *fresh]))

    def _kind(self, label: str) -> str:
        return "line" if label in self.line else "global" if label.startswith("global ") else "baseline"

    def _measure(self, labels: Sequence[str]) -> Generator[list[Evaluation], None, int]:
        """Chunks of a first look: more where noise hides the differences between a few settings."""
        chunks = self.plan.initial_chunks
        while True:
            found = yield from self.look(labels, chunks, self._kind, partial=True)
            self.first_chunks = chunks
            if len(found) < 2:
                return chunks
            self.noise = measure_noise(list(found.values()))
            self.decisions.append(self.noise.describe())
            # Four settings that do not differ at all would spread over one and a half standard errors of a difference.
            if self.noise.paired_se < self.noise.spread / 2 or 8 * chunks > self.plan.max_chunks:
                return chunks
            chunks *= 2
            self.decisions.append(f"too noisy to tell settings apart: first looks take {chunks} chunks")

    # -- model -------------------------------------------------------------------------------------------------------

    def _seen(self) -> dict[str, FidEstimate]:
        """The longest look at each setting, best first."""
        found: dict[str, FidEstimate] = {}
        for answer in self.answers.values():
            label = answer.evaluation.label
            if answer.estimate is not None and answer.evaluation.seeds == "search":
                if label not in found or answer.estimate.n >= found[label].n:
                    found[label] = answer.estimate
        return ranked(found)

    def _at(self, chunks: int) -> dict[str, FidEstimate]:
        """What was seen on so many chunks, best first."""
        found = {label: self.estimate(label, chunks) for label in self.settings}
        return ranked({label: estimate for label, estimate in found.items() if estimate is not None})

    def _model(self) -> tuple[Surrogate, Mapping[str, float]]:
        """The model of all that was seen, and its mean of log FID at each label."""
        found = self._seen()
        model = Surrogate(
            [self.space.features(self.points[label]) for label in found],
            [estimate.debiased for estimate in found.values()],
            [estimate.n for estimate in found.values()],
        )
        return model, dict(zip(found, model.predict(model.x)[0].tolist(), strict=True))

    def _to_beat(self, means: Mapping[str, float], cost: int) -> float:
        """The lowest mean among what costs no more."""
        below = [mean for label, mean in means.items() if self._cost(label) <= cost]
        return min(below) if below else max(means.values())

    def _cost(self, label: str) -> int:
        return self.cost_of(self.settings[label])

    def _model_stage(self, chunks: int) -> Batches:
        """Batches of proposals, as long as they promise something and enough is left to race."""
        promised = math.inf
        for done in range(0, self.plan.num_model, BATCH):
            if self.share_left() < RACE_SHARE:
                return
            enough = GAIN if done >= LEAST_PROPOSED and promised < GAIN else 0.0
            proposed, promised = self._propose(min(BATCH, self.plan.num_model - done), enough)
            if not proposed:
                self.decisions.append(f"{done} proposals; the best of more promises {promised:.3%} of the FID")
                return
            yield from self.look(proposed, chunks, "model", partial=True)

    def _propose(self, count: int, enough: float) -> tuple[list[str], float]:
        """Points of greatest expected improvement, and that of the first, as a share of the FID; none below ``enough``.

        Each is taken to be as the model says before the next is chosen.
        """
        points, promised = self._candidates(), 0.0
        if len(self._seen()) < 4 or not points:
            return [], promised
        model, means = self._model()
        features = np.asarray([self.space.features(point) for point in points])
        to_beat = self._each_to_beat(points, means)
        labels: list[str] = []
        for number in range(min(count, len(points))):
            gains = model.improvement(features, to_beat)
            pick = int(np.argmax(gains))
            if number == 0:
                promised = float(gains[pick])
                if promised < enough:
                    break
            label = self._new(points.pop(pick), "model")
            model.believe(features[pick])
            features, to_beat = np.delete(features, pick, axis=0), np.delete(to_beat, pick)
            if label is not None:
                labels.append(label)
        return labels, promised

    def _candidates(self) -> list[Point]:
        """Points whose sampler is not in yet: all of a small space, else Sobol points."""
        count = self.space.count()
        if count is not None and count <= 4 * CANDIDATES:
            points = self.space.every()
        else:
            sobol = qmc.Sobol(len(self.space.search), scramble=True, rng=self.seed + 1 + len(self.answers))
            points = [self.space.at(shares) for shares in sobol.random(CANDIDATES).tolist()]
        return [point for point in points if self.is_new(point)]

    def _each_to_beat(self, points: Sequence[Point], means: Mapping[str, float]) -> Array:
        if not self._nfe:
            return np.full(len(points), min(means.values()))
        costs = [self.cost_of(self.space.settings(point)) for point in points]
        values = {cost: self._to_beat(means, cost) for cost in set(costs)}
        return np.array([values[cost] for cost in costs])

    def _new(self, point: Point, kind: str) -> str | None:
        label = f"{kind} {self._count + 1}"
        entered = self.add(point, label)
        self._count += entered == label
        return entered

    # -- polish ------------------------------------------------------------------------------------------------------

    def _beside(self, alive: Sequence[str], spacing: float) -> list[str]:
        """New settings beside the living, one value changed, that the model does not rule out; promising ones first."""
        points = [
            {**self.points[label], name: value}
            for label in alive[: max(self.plan.num_starts, len(self.front_of(alive)))]
            for name, where in self.space.search.items()
            for value in where.beside(self.points[label][name], spacing)
        ]
        points = [point for point in points if self.is_new(point)]
        if not points:
            return []
        model, means = self._model()
        to_beat = self._each_to_beat(points, {label: means[label] for label in alive})
        mean, deviation = model.predict(np.asarray([self.space.features(point) for point in points]))
        above = (mean - to_beat) / np.maximum(deviation, 1e-9)
        labels: list[str] = []
        for index in np.argsort(above, kind="stable"):
            if above[index] > RULED_OUT or len(labels) == MOST_NEW:
                break
            label = self._new(points[index], "polish")
            if label is not None and label not in labels:
                labels.append(label)
        return labels

    def front_of(self, labels: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(labels)) if self._nfe else []

    # -- race --------------------------------------------------------------------------------------------------------

    def race(self, labels: Iterable[str], stage: str, most: int) -> Outcome:
        """Double the chunks, to ``most``, of those that may still be best.

        Returns the estimates of the last look, best first, and those that are tied with it.
        """
        alive, chunks = list(dict.fromkeys(labels)), self.first_chunks
        while True:
            found = yield from self.look(alive, chunks, stage, partial=True)
            going = min(2 * chunks, max(most, self.first_chunks))
            kept = self._cap({label: found[label] for label in found if self._may_be_best(label, found)}, going)
            if len(kept) < 2 or chunks >= most:
                return found, kept[1:]
            alive, chunks = kept, going

    def _may_be_best(self, label: str, found: Mapping[str, FidEstimate]) -> bool:
        """False when the best that costs no more is better by z standard errors, or surely as good as makes no odds."""
        rival = next(other for other in found if self._cost(other) <= self._cost(label))
        if rival == label:
            return True
        gap, se = paired_difference(found[label], found[rival])
        return gap <= self.plan.z * se and gap + self.plan.z * se >= self.plan.tie * found[rival].debiased

    def _cap(self, found: Mapping[str, FidEstimate], chunks: int) -> list[str]:
        """Who goes on to so many chunks, best first, one of those that are surely equal.

        ``num_finalists`` at twice the first look, half as many at each doubling after it. With objective nfe those of
        the front before all others.
        """
        halvings = round(math.log2(chunks / self.first_chunks)) - 1
        most = max(self.plan.num_finalists >> max(halvings, 0), self.plan.fewest_raced)
        first = front(found, self.settings)[::-1] if self._nfe else []
        kept: list[str] = []
        for label in dict.fromkeys([*first, *found]):
            if not any(self._equal(label, other, found) for other in kept):
                kept.append(label)
        return kept[: min(most, self.plan.num_finalists)]

    def _equal(self, label: str, other: str, found: Mapping[str, FidEstimate]) -> bool:
        """Whether a setting is surely within ``tie`` of another one that costs no more."""
        if self._cost(other) > self._cost(label):
            return False
        gap, se = paired_difference(found[label], found[other])
        return abs(gap) + self.plan.z * se < self.plan.tie * found[other].debiased
