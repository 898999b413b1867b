"""P(within 1 %) of the search at one budget, against a grid and random search of as many images.

    python -m research.leaderboard.replay CACHE [--replays 200] [--landscape untouched]

Every replay samples images of seeds that no other has, so nothing is drawn twice; what each strategy chose is then
judged on the same fresh images. The landscape is one of its own: 8x8 digits, a network of another width and seed and
other features, made for this alone. Regret is against the best that any replay of any strategy found, so it is a little
too high for all alike. Results go to replays.json; a run that was stopped resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from edm_ray.diffusion.samplers import Sampler, read_sampler
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.budget_space import at_budget
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan, sweep_plan
from edm_ray.search.races import Races
from edm_ray.search.space import load_space
from research.leaderboard.judge import BLOCK, Judge, judges, trajectories_of
from research.leaderboard.search import SPACE
from research.race.landscape import SPECS

HERE = Path(__file__).parent
RESULTS = HERE / "replays.json"
NFE = 8
IMAGES = 200_000
"""Of the search; nothing is confirmed here."""
TRUTH = 50_000
APART = IMAGES
"""Seeds between the beginnings of two replays."""
SHARED = {"chunk_size": BLOCK, "confirm_chunks": 1}
PLANS = {
    "race": sweep_plan(**SHARED, initial_chunks=3, max_chunks=48, budget_images=IMAGES),
    "race without refinement": sweep_plan(
        **SHARED, initial_chunks=3, max_chunks=48, budget_images=IMAGES, refine=False
    ),
    "random, 60 at 3,000": sweep_plan(**SHARED, strategy="random", num_global=60, max_chunks=3, budget_images=IMAGES),
    "random, 18 at 10,000": sweep_plan(**SHARED, strategy="random", num_global=18, max_chunks=10, budget_images=IMAGES),
}
GRID = "grid of solver x rho x sigma_min, 72 at 2,000"
PLANS[GRID] = sweep_plan(**SHARED, strategy="grid", grid_points=3, max_chunks=2, budget_images=IMAGES)
UNTOUCHED = dataclasses.replace(
    SPECS["other-net"],
    name="untouched",
    about="8x8 digits, a network of 48 x 2 of another seed, other features; not used for building the search",
    width=48,
    depth=2,
    train_steps=3000,
    seed=11,
    whiten=0.75,
)


class Replay(Judge):
    """A judge whose seeds begin elsewhere, and who keeps nothing on disk."""

    def __init__(self, judge: Judge, number: int) -> None:
        self.judged, self.number, self.sampled = judge.judged, number, 0
        self._blocks: dict[tuple[Sampler, int], np.ndarray] = {}

    def block(self, settings: Sampler, pool: Any, number: int) -> np.ndarray:
        key = (settings.effective(self.judged.denoiser), number)
        if key not in self._blocks:
            self._blocks[key] = self._make(key[0], (1 + self.number) * APART + number * BLOCK)
        return self._blocks[key]


def play(judge: Judge, number: int, plan: SweepPlan) -> tuple[Sampler, int]:
    """What one replay chose, and the images it took."""
    world, space = Replay(judge, number), load_space(str(SPACE))
    if plan.strategy.name == "grid":
        few = {name: space.search[name] for name in ("solver", "rho", "sigma_min")}
        space = dataclasses.replace(space, search=few)
    races = Races([Driver(at_budget(space, NFE), plan, number, judge.judged.denoiser)])
    if plan.strategy.name == "race":
        races.propose(trajectories_of(judge.judged))
    [driver] = races.drivers
    while not races.finished:
        for asked in races.ask():
            if asked.seeds == "confirm":
                races.tell_failure(asked.id, "not replayed")
            else:
                races.tell(asked.id, world(asked, BLOCK))
    assert driver.outcome.best is not None
    return driver.search.registry.samplers[driver.outcome.best], world.sampled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--landscape", default=UNTOUCHED.name)
    args = parser.parse_args()
    SPECS.setdefault(UNTOUCHED.name, UNTOUCHED)
    [judge] = judges([args.landscape], args.cache, None)
    kept = args.cache / f"replays-{args.landscape}.json"
    chosen: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for number in range(args.replays):
        for title, plan in PLANS.items():
            if str(number) not in chosen.setdefault(title, {}):
                sampler, images = play(judge, number, plan)
                chosen[title][str(number)] = [sampler.to_dict(), images]
                kept.write_text(json.dumps(chosen))
        print(f"{number + 1} of {args.replays} replays", flush=True)
    RESULTS.write_text(json.dumps(judged(judge, chosen), indent=1) + "\n")


def judged(judge: Judge, chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the choices are worth on fresh images."""
    truths: dict[str, FidEstimate] = {}
    for each in chosen.values():
        for flat, _ in each.values():
            name = json.dumps(flat, sort_keys=True)
            if name not in truths:
                truths[name] = judge.estimate(read_sampler(flat, "replay"), "confirm", TRUTH)
    order = sorted(truths.values(), key=lambda estimate: estimate.debiased)
    best = order[0]
    paired = [paired_difference(other, best)[1] / best.debiased for other in order[1:6]]
    strategies = {}
    for title, each in chosen.items():
        found = [truths[json.dumps(flat, sort_keys=True)].debiased for flat, _ in each.values()]
        regrets = np.array(found) / best.debiased - 1
        strategies[title] = {
            "replays": len(each),
            "images": float(np.mean([images for _, images in each.values()])),
            "regret": float(regrets.mean()),
            "regret_se": float(regrets.std() / math.sqrt(len(regrets))),
            "within": {str(share): float((regrets <= share).mean()) for share in (0.01, 0.02, 0.05)},
        }
    about = {
        "landscape": judge.judged.about,
        "nfe": NFE,
        "best": best.debiased,
        "truth_images": TRUTH,
        "paired_se": float(np.mean(paired)) if paired else 0.0,
    }
    return {"about": about, "strategies": strategies}


if __name__ == "__main__":
    main()
