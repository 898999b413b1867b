"""`race` replayed with two kinds of standard errors: a ten-group jackknife's, and influences summed over 100 groups.

    python -m research.error_bars.replays CACHE [--replays 100]     (10 minutes to build, 10 to replay, on one core)

The landscape is `research.race`'s digits (501 samplers), in units of 50 images so that 3,000 images have 60 of them.
Nothing else differs: debiased FIDs are the jackknife's in both, and z is 2. Results go to replays.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan
from research.race.compare import PLANS, line
from research.race.landscape import DIM, SPECS, TRIANGLE, Landscape, build
from research.race.replay import Ground, World, play

RESULTS = Path(__file__).parent / "replays.json"
UNIT, IMAGES = 50, 30_000
MOST_GROUPS = 97


class ByInfluence(Ground):
    """Errors from influences, summed over units."""

    def __init__(self, landscape: Landscape) -> None:
        super().__init__(landscape)
        values, vectors = np.linalg.eigh(landscape.covariance)
        self.left = vectors * np.sqrt(np.maximum(values, 0))

    def estimate(self, row: int, units: np.ndarray) -> FidEstimate:
        found = super().estimate(row, units)
        rows = self.packed[row][units].astype(np.float64)
        shares = self.influences(rows) / found.n
        groups = min(MOST_GROUPS, len(units))
        sums = np.bincount(np.arange(len(units)) % groups, shares, groups)
        # Written as leave-one-out FIDs, from which paired differences are taken.
        left_out = found.fid - sums * groups / (groups - 1)
        se = float(np.sqrt(groups / (groups - 1) * (sums**2).sum()))
        return dataclasses.replace(found, se=se, leave_one_out=tuple(left_out.tolist()))

    def influences(self, rows: np.ndarray) -> np.ndarray:
        """Sums over the images of each unit."""
        n, unit = len(rows) * self.landscape.unit, self.landscape.unit
        whole = rows.sum(axis=0)
        mean, outer = whole[:DIM] / n, np.zeros((DIM, DIM))
        outer[TRIANGLE] = whole[DIM:]
        outer = outer + np.tril(outer, -1).T
        covariance = (outer - n * np.outer(mean, mean)) / (n - 1)
        values, vectors = np.linalg.eigh(self.left.T @ covariance @ self.left)
        kept = values > values[-1] * DIM * np.finfo(float).eps
        turned = self.left @ vectors[:, kept]
        slope = np.eye(DIM) - turned / np.sqrt(values[kept]) @ turned.T
        weights = ((2 - np.eye(DIM)) * slope)[TRIANGLE]
        sums = rows[:, :DIM]
        square = rows[:, DIM:] @ weights - 2 * sums @ (slope @ mean) + unit * (mean @ slope @ mean)
        first = 2 * (sums - unit * mean) @ (mean - self.landscape.mean) + n / (n - 1) * square
        return first - first.mean()


def plans() -> dict[str, SweepPlan]:
    usual = PLANS["race"]

    def looking(first: int, most: int) -> SweepPlan:
        return dataclasses.replace(
            usual, strategy=dataclasses.replace(usual.strategy, initial_chunks=first, max_chunks=most)
        )

    return {"race": usual, "race, 1,000 to 16,000 images": looking(1, 16)}


def part(task: tuple[str, Path, str, str, range]) -> list[tuple[int, float]]:
    """(images spent, regret) of these replays."""
    name, cache, title, errors, replays = task
    landscape = build(SPECS[name], cache, IMAGES, UNIT)
    ground = (ByInfluence if errors == "influence" else Ground)(landscape)
    plan, rows = plans()[title], []
    for replay in replays:
        driver = Driver(ground.space(), plan, replay)
        best, images = play(driver, World(ground, replay, plan.chunk_size))
        row = ground.row[driver.search.registry.samplers[best]]
        rows.append((images, float(ground.regrets(replay)[row])))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--landscapes", nargs="+", default=["digits"], choices=list(SPECS))
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.exists() else {}
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for name in args.landscapes:
            for title in plans():
                for errors in ("jackknife", "influence"):
                    parts = [
                        (name, args.cache, title, errors, range(first, min(first + 10, args.replays)))
                        for first in range(0, args.replays, 10)
                    ]
                    rows = [row for each in pool.imap(part, parts) for row in each]
                    results[f"{name}: {title}, {errors}"] = rows
                    args.results.write_text(json.dumps(results) + "\n")
                    print(f"{name}: {title}, {errors}: {line(rows)}", flush=True)


if __name__ == "__main__":
    main()
