"""The sweep by budget on four small models: what it finds, and what its parts are worth.

    python -m research.leaderboard.search CACHE [--demo DEMO] [--models digits other-net crops "digits U-Net"]

300,000 images a budget, confirmation included (25,000 fresh ones a sampler). DEMO: the folder of `edm-ray demo`, whose
model is the fourth. Results go to searches.json; `python -m research.leaderboard.page` writes them into README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from edm_ray.search.budget_space import at_budget
from edm_ray.search.by_budget import Row, rows_of
from edm_ray.search.driver import Driver, run
from edm_ray.search.plan import SweepPlan, sweep_plan
from edm_ray.search.races import Races
from edm_ray.search.result import SweepResult, result_of
from edm_ray.search.space import load_space
from edm_ray.search.statistics import Difference
from research.leaderboard.judge import BLOCK, UNET, Judge, judges, trajectories_of
from research.race.landscape import SPECS

HERE = Path(__file__).parent
RESULTS = HERE / "searches.json"
SPACE = HERE.parents[1] / "tune_spaces" / "any-budget.yaml"
BUDGETS = (5, 6, 8, 10, 18, 35)
BUDGET_IMAGES = 300_000
VARIANTS = ("all", "no trajectories", "no refinement", "neither")


def plan_of(variant: str, images: int = BUDGET_IMAGES) -> SweepPlan:
    """The product's counts of images, in chunks of 1,000; everything in proportion to the images of a budget."""
    return sweep_plan(
        chunk_size=BLOCK,
        initial_chunks=3 if images >= 200_000 else 1,
        max_chunks=48,
        confirm_chunks=images // 12_000,
        budget_images=images,
        refine=variant in ("all", "no trajectories"),
    )


def searched(judge: Judge, variant: str, images: int = BUDGET_IMAGES, seed: int = 0) -> list[SweepResult]:
    space, denoiser = load_space(str(SPACE)), judge.judged.denoiser
    plan = plan_of(variant, images)
    races = Races([Driver(at_budget(space, nfe), plan, seed, denoiser) for nfe in BUDGETS])
    if variant in ("all", "no refinement"):
        races.propose(trajectories_of(judge.judged))
    run(races, lambda asked: judge(asked, BLOCK))
    return [result_of(driver) for driver in races.drivers]


def _gap(gap: Difference | None) -> list[float] | None:
    return None if gap is None else [round(value, 5) for value in (gap.gap, gap.low, gap.high)]


def _plain(row: Row, result: SweepResult) -> dict[str, Any]:
    return {
        "budget": row.nfe,
        "sampler": row.words,
        "settings": row.best.settings.to_dict(),
        "nfe": row.best.settings.nfe,
        "fid": round(row.best.estimate.fid, 5),
        "debiased": round(row.best.estimate.debiased, 5),
        "se": round(row.best.estimate.se, 5),
        "n": row.best.estimate.n,
        "unsearched": None if row.unsearched is None else str(row.unsearched.settings),
        "against_unsearched": _gap(row.against_unsearched),
        "against_heun": _gap(row.against_heun),
        "against_largest": _gap(row.against_largest),
        "margin": round(row.margin, 5),
        "no_worse": row.no_worse,
        "images": result.images,
        "stages": {cost.stage: [cost.settings, cost.images] for cost in result.costs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--demo")
    parser.add_argument("--models", nargs="+", default=[*SPECS])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--images", type=int, default=BUDGET_IMAGES)
    args = parser.parse_args()
    for judge in judges(args.models, args.cache, args.demo):
        for variant in args.variants:
            began = time.monotonic()
            results = searched(judge, variant, args.images)
            by_budget = {result.nfe: result for result in results}
            rows = rows_of(results)
            found = {
                "about": judge.judged.about,
                "rows": [_plain(row, by_budget[row.nfe]) for row in rows],
                "minutes": round((time.monotonic() - began) / 60, 1),
            }
            kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            kept.setdefault(judge.judged.name, {})[variant] = found
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            for row in rows:
                print(f"{judge.judged.name}, {variant}: {row.sentence()}", flush=True)


if __name__ == "__main__":
    assert UNET not in SPECS
    main()
