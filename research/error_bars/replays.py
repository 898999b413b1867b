"""`race` replayed with two kinds of standard errors: a ten-group jackknife's, and influences over up to 73 groups.

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

from edm_ray.evaluation.fid import FidEstimate, standard_error
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan
from research.race.compare import PLANS, line
from research.race.landscape import SPECS, build
from research.race.packed import JACKKNIFE
from research.race.replay import Ground, World, play

RESULTS = Path(__file__).parent / "replays.json"
UNIT, IMAGES = 50, 30_000


class ByJackknife(Ground):
    """Errors of ten groups of units, each left out."""

    def estimate(self, row: int, units: np.ndarray) -> FidEstimate:
        found = super().estimate(row, units)
        rows = self.packed[row][units].astype(np.float64)
        group = np.arange(len(units)) % JACKKNIFE
        own = np.stack([rows[group == k].sum(axis=0) for k in range(JACKKNIFE)])
        images = found.n - np.bincount(group, minlength=JACKKNIFE) * self.landscape.unit
        left_out = self.sums.fids(own.sum(axis=0) - own, images)
        # Written as influences, from which paired differences are taken.
        influence = ((left_out.mean() - left_out) * (JACKKNIFE - 1) / JACKKNIFE).tolist()
        return dataclasses.replace(found, se=standard_error(influence), influence=tuple(influence))


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
    ground = (ByJackknife if errors == "jackknife" else Ground)(landscape)
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
