"""Every strategy replayed on landscapes of 501 samplers; the tables of README.md.

    python -m research.race.compare build   CACHE [--images 60000 40000 40000]     (an hour on two cores)
    python -m research.race.compare replay  CACHE [--replays 200] [--landscapes digits other-net crops]
    python -m research.race.compare tables

`build` trains three small denoisers and samples all their grids; a run that was stopped resumes. `replay` plays each
strategy against chunks resampled from one half of the images, and judges what it chose by the other half; results go to
replays.json. `tables` writes them into README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import edm_ray.search
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan, sweep_plan
from edm_ray.search.race import Race
from research.race.landscape import SPECS, build
from research.race.optuna_race import OptunaRace
from research.race.replay import Ground, World, play, spread_of

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "replays.json", HERE / "README.md"
MARKS = "<!-- made by research/race/compare.py, {0}: begin -->", "<!-- {0}: end -->"
CHUNK = 1000
GRID_IMAGES = 50_000
CONFIRM = 50_000
"""Fresh images that confirm the best, counted for every strategy but the grid (whose evaluation is its result)."""
DEFAULTS, RACE = SweepPlan(), Race()
SHARED = {"chunk_size": CHUNK, "confirm_chunks": CONFIRM // CHUNK, "num_line": 0}
# The plan's own counts of images with chunks of 1,000; the line of S_churn is left out, being off these grids.
LOOKS = {
    "initial_chunks": RACE.initial_chunks * DEFAULTS.chunk_size // CHUNK,
    "max_chunks": RACE.max_chunks * DEFAULTS.chunk_size // CHUNK,
}
PLANS = {
    "race": sweep_plan(**SHARED, **LOOKS),
    "race, half the model": sweep_plan(**SHARED, **LOOKS, num_model=RACE.num_model // 2),
    "random, 100 at 50,000": sweep_plan(**SHARED, strategy="random", num_global=100, max_chunks=50),
    "random, 100 at 5,000": sweep_plan(**SHARED, strategy="random", num_global=100, max_chunks=5),
    "optuna TPE, 100 at 5,000": sweep_plan(**SHARED, strategy="optuna", num_global=100, max_chunks=5),
    "asha, 100 from 4,000": sweep_plan(**SHARED, strategy="asha", num_global=100, initial_chunks=4, max_chunks=32),
    OptunaRace.name: SweepPlan(
        strategy=OptunaRace(num_line=0, **LOOKS), chunk_size=CHUNK, confirm_chunks=CONFIRM // CHUNK
    ),
}


def grid(ground: Ground, replay: int, shared: bool) -> tuple[int, int]:
    """All settings at 50,000 images each, the lowest FID wins: (row, images)."""
    count = GRID_IMAGES // ground.landscape.unit
    half = ground.halves(replay)[0]
    rng = np.random.default_rng([13, replay])
    units = rng.choice(half, count)
    rows = range(len(ground.packed))
    fids = [ground.plain(row, units if shared else rng.choice(half, count)) for row in rows]
    return int(np.argmin(fids)), len(fids) * GRID_IMAGES


def contenders() -> dict[str, Callable[[Ground, int], tuple[int, int]]]:
    """Name -> (ground, replay) -> (row chosen, images spent)."""
    found: dict[str, Callable[[Ground, int], tuple[int, int]]] = {
        "grid, independent seeds (the paper's way)": lambda ground, replay: grid(ground, replay, False),
        "grid, shared seeds": lambda ground, replay: grid(ground, replay, True),
    }

    def player(plan: SweepPlan) -> Callable[[Ground, int], tuple[int, int]]:
        def run(ground: Ground, replay: int) -> tuple[int, int]:
            driver = Driver(ground.space(), plan, replay)
            best, images = play(driver, World(ground, replay, plan.chunk_size))
            return ground.row[driver.search.registry.samplers[best]], images + CONFIRM

        return run

    return {**found, **{name: player(plan) for name, plan in PLANS.items()}}


@functools.cache
def ground_of(name: str, cache: Path, images: int) -> Ground:
    return Ground(build(SPECS[name], cache, images))


def replay_part(task: tuple[str, Path, int, str, range]) -> list[tuple[int, float]]:
    """Replays of one strategy: (images spent, regret) of each. Kept, so that a stopped run resumes."""
    name, cache, images, title, replays = task
    code = [path.read_text() for path in sorted(Path(edm_ray.search.__path__[0]).glob("*.py"))]
    key = hashlib.sha256(repr((images, title, PLANS.get(title), replays, code)).encode()).hexdigest()[:16]
    kept = cache / name / f"replays-{key}.json"
    if kept.exists():
        return [(spent, regret) for spent, regret in json.loads(kept.read_text())]
    ground, run = ground_of(name, cache, images), contenders()[title]
    rows = []
    for replay in replays:
        row, spent = run(ground, replay)
        rows.append((spent, float(ground.regrets(replay)[row])))
    kept.write_text(json.dumps(rows))
    return rows


def replay_landscape(name: str, cache: Path, images: int, replays: int, titles: list[str], pool: Any) -> dict[str, Any]:
    ground = ground_of(name, cache, images)
    results: dict[str, Any] = {
        "about": SPECS[name].about,
        "images": images,
        "settings": len(ground.packed),
        "spread": dataclasses.asdict(spread_of(ground)),
        "strategies": {},
    }
    for title in titles:
        began = time.monotonic()
        parts = [
            (name, cache, images, title, range(first, min(first + 10, replays))) for first in range(0, replays, 10)
        ]
        rows = [row for part in pool.imap(replay_part, parts) for row in part]
        results["strategies"][title] = {"replays": rows}
        print(f"{name}: {title}: {line(rows)} ({time.monotonic() - began:.0f} s)", flush=True)
    return results


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, share = 1.959964, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def line(rows: list[tuple[int, float]]) -> str:
    """images | most | share of the grid | mean regret | P(within 1 %) | P(within 2 %) | worst"""
    spent, regret = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    hits = int((regret <= 0.01).sum())
    low, high = wilson(hits, len(rows))
    se = regret.std(ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
    return (
        f"{spent.mean() / 1e6:.2f} M | {spent.max() / 1e6:.2f} M | {100 * spent.mean() / (501 * GRID_IMAGES):.1f} % | "
        f"{100 * regret.mean():.2f} +- {100 * se:.2f} % | {hits / len(rows):.3f} ({low:.2f} to {high:.2f}) | "
        f"{(regret <= 0.02).mean():.3f} | {100 * regret.max():.1f} %"
    )


def row(title: str, rows: list[tuple[int, float]], usual: int) -> str:
    """A strategy's line, with its number of replays where that is not the usual one."""
    return f"| {title}{'' if len(rows) == usual else f' ({len(rows)} replays)'} | {line(rows)} |"


def tables(results: dict[str, Any]) -> str:
    parts = []
    for name, result in results["landscapes"].items():
        spread = result["spread"]
        within = ", ".join(f"{count:.1f} within {100 * float(share):g} %" for share, count in spread["within"].items())
        count = len(next(iter(result["strategies"].values()))["replays"])
        parts.append(
            f"**{name}**: {result['about']}. {result['settings']} samplers x {result['images']:,} images; truth from "
            f"{spread['images']:,} of them: standard error {100 * spread['se']:.2f} % of one FID, "
            f"{100 * spread['paired_se']:.2f} % of a paired difference near the best; {within} of the best; "
            f"deterministic sampling is {100 * spread['deterministic']:.0f} % worse. {count} replays.\n\n"
            "| strategy | images, mean | most | of the grid | mean regret | P(within 1 %) | P(2 %) | worst |\n"
            "|---|---|---|---|---|---|---|---|\n"
            + "\n".join(row(title, each["replays"], count) for title, each in result["strategies"].items())
        )
    return "\n\n".join(parts)


def write_page(title: str, text: str) -> None:
    begin, end = (mark.format(title) for mark in MARKS)
    head, rest = PAGE.read_text().split(begin, 1)
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "replay", "tables"))
    parser.add_argument("cache", nargs="?", type=Path)
    parser.add_argument("--landscapes", nargs="+", default=list(SPECS), choices=list(SPECS))
    parser.add_argument("--images", nargs="+", type=int, default=[60_000, 40_000, 40_000])
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="these strategies, beside what was replayed before")
    parser.add_argument("--title", help="of the table, instead of the landscape's name")
    parser.add_argument("--results", type=Path, default=RESULTS, help="replay: where results go")
    args = parser.parse_args()
    results = json.loads(args.results.read_text()) if args.results.exists() else {"landscapes": {}}
    if args.what == "tables":
        write_page("replays", tables(results))
        return
    if args.cache is None:
        parser.error("give a folder for the landscapes")
    images = dict(zip(SPECS, args.images, strict=True))
    if args.what == "build":
        for name in args.landscapes:
            build(SPECS[name], args.cache, images[name])
        return
    titles = [title for title in contenders() if not args.only or title in args.only]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for name in args.landscapes:
            found = replay_landscape(name, args.cache, images[name], args.replays, titles, pool)
            before = results["landscapes"].get(args.title or name, {}) if args.only else {}
            results["landscapes"][args.title or name] = {
                **found,
                "strategies": {**before.get("strategies", {}), **found["strategies"]},
            }
            args.results.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
