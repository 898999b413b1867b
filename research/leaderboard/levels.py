"""Noise levels chosen on trajectories by what errors do to pixels or to features, against rho 7.

    python -m research.leaderboard.levels CACHE [--models digits other-net crops] [--images 10000]

Stage 0 of a sweep weighs the error of a step at each level as a Gaussian carries it to the image. Here the weights are
measured instead: an error of Euler's kind is put in at nine levels and followed to the image (Heun, all levels below),
and its square there, of pixels or of features, is compared with the square that was put in. Every choice of levels is
judged by FID on the same seeds. Results go to levels.json; `python -m research.leaderboard.page` writes the table.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_ray.diffusion.analysis.level_choice import best_levels, can_choose, gaussian_weights
from edm_ray.diffusion.analysis.trajectories import Trajectories
from edm_ray.diffusion.denoiser import AtLevel, as_denoiser
from edm_ray.diffusion.samplers import Sampler
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.generation.trajectories import FIRST_SEED
from edm_ray.search.budget_space import at_budget
from edm_ray.search.levels import with_levels
from edm_ray.search.space import load_space
from edm_ray.seeding import image_noise
from research.leaderboard.judge import BLOCK, Judge, Judged, judges, shape_of, trajectories_of
from research.leaderboard.search import SPACE
from research.race.landscape import SPECS

HERE = Path(__file__).parent
RESULTS = HERE / "levels.json"
BUDGETS = (5, 6, 8, 10)
PROBED = 64
"""Trajectories."""
PROBES = (1, 4, 8, 12, 16, 20, 24, 28, 31)
REACH = 4
"""An error is that of Euler's step over so many levels, in direction."""
SIZE = 0.1
"""Of an error in the image, in root mean squares of the image, if a Gaussian carried it."""


def measured_weights(judged: Judged, trajectories: Trajectories) -> dict[str, np.ndarray]:
    """[K + 1] each: of pixels, and of features."""
    levels = trajectories.levels
    seeds = torch.arange(FIRST_SEED, FIRST_SEED + PROBED)
    with torch.inference_mode():
        D = AtLevel(as_denoiser(judged.denoiser), judged.labels(seeds))
        latents = image_noise(seeds, "latents", shape_of(judged))(0).double()
        states = [latents * levels[0]]
        for index in range(len(levels) - 1):
            states.append(_heun(D, states[-1], levels[index], levels[index + 1]))
        image = D(states[-1], levels[-1])
        features = judged.extract(image.float())
        found: dict[str, list[float]] = {"pixels": [], "features": []}
        for probe in PROBES:
            error = _error(D, states, levels, probe)
            x = states[probe] + error
            for index in range(probe, len(levels) - 1):
                x = _heun(D, x, levels[index], levels[index + 1])
            moved = D(x, levels[-1])
            put_in = float(error.square().mean())
            found["pixels"].append(float((moved - image).square().mean()) / put_in)
            found["features"].append(float(((judged.extract(moved.float()) - features) ** 2).mean()) / put_in)
    return {name: _between(values, levels) for name, values in found.items()}


def _heun(D: AtLevel, x: torch.Tensor, level: float, after: float) -> torch.Tensor:
    slope = (x - D(x, level)) / level
    ahead = x + (after - level) * slope
    return x + (after - level) / 2 * (slope + (ahead - D(ahead, after)) / after)


def _error(D: AtLevel, states: list[torch.Tensor], levels: tuple[float, ...], probe: int) -> torch.Tensor:
    start = max(probe - REACH, 0)
    x, level = states[start], levels[start]
    error = x + (levels[probe] - level) * (x - D(x, level)) / level - states[probe]

    def size(value: torch.Tensor) -> torch.Tensor:
        return value.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)[:, None, None, None]

    return error / size(error) * SIZE * (size(states[-1]) ** 2 + levels[probe] ** 2).sqrt()


def _between(values: list[float], levels: tuple[float, ...]) -> np.ndarray:
    """At all levels: ln of the weight is linear in ln sigma; the last of the image itself."""
    known = np.log([levels[probe] for probe in PROBES])[::-1]
    logs = np.interp(np.log(levels), known, np.log(np.maximum(values, 1e-12))[::-1])
    return np.exp(np.append(logs, logs[-1]))


def _choices(judged: Judged) -> dict[str, dict[str, dict[str, Sampler]]]:
    """Budget -> solver -> how the levels were chosen -> sampler."""
    trajectories = trajectories_of(judged)
    weights = {"gaussian": gaussian_weights(trajectories), **measured_weights(judged, trajectories)}
    found: dict[str, dict[str, dict[str, Sampler]]] = {}
    for nfe in BUDGETS:
        space = at_budget(load_space(str(SPACE)), nfe)
        for name in space.unsearched:
            sampler = space.starts[name]
            if not can_choose(sampler):
                continue
            made = {"rho 7": sampler}
            for title, each in weights.items():
                levels, _ = best_levels(trajectories, sampler, sampler.num_steps, each)
                chosen = with_levels(sampler, levels)
                assert chosen is not None
                made[title] = chosen
            found.setdefault(str(nfe), {})[name] = made
    return found


def _judged(judge: Judge, images: int) -> dict[str, Any]:
    budgets: dict[str, Any] = {}
    for nfe, solvers in _choices(judge.judged).items():
        for solver, made in solvers.items():
            estimates = {title: judge.estimate(each, "confirm", images) for title, each in made.items()}
            plain = estimates["rho 7"]
            budgets.setdefault(nfe, {})[solver] = {
                title: [round(each.fid, 4), *_against(each, plain)] for title, each in estimates.items()
            }
            told = ", ".join(f"{title} {each.fid:.3f}" for title, each in estimates.items())
            print(f"{judge.judged.name}, {nfe}, {solver}: {told}", flush=True)
    return {"about": judge.judged.about, "images": images, "budgets": budgets}


def _against(each: FidEstimate, plain: FidEstimate) -> list[float]:
    gap, error = paired_difference(each, plain)
    return [round(gap, 4), round(error, 4)] if math.isfinite(error) else [0.0, 0.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--demo")
    parser.add_argument("--models", nargs="+", default=[*SPECS])
    parser.add_argument("--images", type=int, default=10 * BLOCK)
    args = parser.parse_args()
    for judge in judges(args.models, args.cache, args.demo):
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept[judge.judged.name] = _judged(judge, args.images)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
