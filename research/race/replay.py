"""Worlds in which strategies are replayed: half of a landscape's chunks to search on, the other half for the truth."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import numpy as np

from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.dimensions import Grid
from edm_ray.search.driver import Driver
from edm_ray.search.space import Space
from edm_ray.search.trials import Evaluation
from research.race.landscape import NUM_STEPS, Landscape
from research.race.packed import Packed

SPLITS = 10
"""Cuts into halves; replay r uses cut r mod SPLITS, with chunks of its own drawn from the search half."""
POOL = 4000
"""Units drawn (with replacement) from the search half for one replay: its endless supply of seeds."""


class Ground:
    """FIDs of a landscape from moments of units."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape, self.packed = landscape, landscape.packed
        self.units = self.packed.shape[1]
        self.sums = Packed(landscape.mean, landscape.covariance)
        self.row = {settings.effective(None): i for i, settings in enumerate(landscape.settings)}
        self._truths: dict[int, list[FidEstimate]] = {}

    def space(self) -> Space:
        spec = self.landscape.spec
        search = {
            "churn_fraction": Grid(grid=spec.churn),
            "s_tmin": Grid(grid=spec.s_tmin),
            "s_tmax": Grid(grid=spec.s_tmax),
            "s_noise": Grid(grid=spec.s_noise),
        }
        return Space(name=spec.name, sampler=sampler(num_steps=NUM_STEPS), search=search)

    def estimate(self, row: int, units: np.ndarray) -> FidEstimate:
        """As edm_ray has it, the groups being units."""
        images = np.full(len(units), self.landscape.unit)
        rows = self.packed[row][units].astype(np.float64)
        return self.sums.estimate(rows, images, self.landscape.spec.name, "features of the landscape")

    def plain(self, row: int, units: np.ndarray) -> float:
        whole = self.packed[row][units].sum(axis=0, dtype=np.float64)
        return float(self.sums.fids(whole[None], np.array([len(units) * self.landscape.unit]))[0])

    def halves(self, replay: int) -> tuple[np.ndarray, np.ndarray]:
        """Units to search on and units for the truth: disjoint."""
        order = np.random.default_rng([7, replay % SPLITS]).permutation(self.units)
        return order[: self.units // 2], order[self.units // 2 :]

    def truth(self, replay: int) -> list[FidEstimate]:
        """Of every sampler, on the whole truth half."""
        split = replay % SPLITS
        if split not in self._truths:
            self._truths[split] = self._kept_truth(split)
        return self._truths[split]

    def _kept_truth(self, split: int) -> list[FidEstimate]:
        """From its file, or worked out now: minutes, and each process of the replays needs it."""
        path = self.landscape.folder / f"truths-{self.units * self.landscape.unit}-{split}.json"
        if not path.exists():
            units = self.halves(split)[1]
            found = [self.estimate(row, units).to_dict() for row in range(len(self.packed))]
            part = path.with_suffix(f".{os.getpid()}.tmp")
            part.write_text(json.dumps(found))
            part.rename(path)
        return [FidEstimate.from_dict(each) for each in json.loads(path.read_text())]

    def regrets(self, replay: int) -> np.ndarray:
        """By how much each sampler's true FID exceeds the least, as a share."""
        values = np.array([estimate.debiased for estimate in self.truth(replay)])
        return values / values.min() - 1


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How well the truth is known, as shares of the least FID: averages over the splits."""

    images: int
    se: float
    """Standard error of one true FID."""
    paired_se: float
    """Of the difference of the best and each of the next five."""
    within: dict[float, float]
    """Samplers within so much of the best."""
    deterministic: float
    """By how much deterministic sampling is worse than the best."""


def spread_of(ground: Ground) -> Spread:
    se, paired, regrets = [], [], []
    for split in range(SPLITS):
        truth = ground.truth(split)
        order = np.argsort([estimate.debiased for estimate in truth])
        best = truth[order[0]]
        se.append(best.se / best.debiased)
        paired += [paired_difference(truth[row], best)[1] / best.debiased for row in order[1:6]]
        regrets.append(ground.regrets(split))
    return Spread(
        images=len(ground.halves(0)[1]) * ground.landscape.unit,
        se=float(np.mean(se)),
        paired_se=float(np.mean(paired)),
        within={share: float(np.mean([(each <= share).sum() for each in regrets])) for share in (0.01, 0.02, 0.05)},
        deterministic=float(np.mean([each[0] for each in regrets])),
    )


class World:
    """One replay: seeds drawn from the search half; all samplers share them."""

    def __init__(self, ground: Ground, replay: int, chunk_size: int) -> None:
        self.ground, self.chunk_size = ground, chunk_size
        self.units = np.random.default_rng([11, replay]).choice(ground.halves(replay)[0], POOL)

    def answer(self, evaluation: Evaluation) -> FidEstimate:
        units = self.units[: evaluation.chunks * self.chunk_size // self.ground.landscape.unit]
        return self.ground.estimate(self.ground.row[evaluation.settings], units)


def play(driver: Driver, world: World) -> tuple[str, int]:
    """To the end of its search: (what it chose, images it took). Nothing is confirmed: that chooses nothing."""
    while not driver.finished:
        for evaluation in driver.ask():
            if evaluation.seeds == "confirm":
                driver.tell_failure(evaluation.id, "not replayed")
            else:
                driver.tell(evaluation.id, world.answer(evaluation))
    chunks: dict[str, int] = {}
    for trial in driver.trials:
        evaluation = trial.evaluation
        if evaluation.seeds == "search":
            chunks[evaluation.label] = max(chunks.get(evaluation.label, 0), evaluation.chunks)
    assert driver.outcome.best is not None
    return driver.outcome.best, sum(chunks.values()) * world.chunk_size
