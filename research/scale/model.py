"""A sweep on N GPUs, and two processes of this machine, from costs of their parts.

A run on N GPUs is `edm_ray.training.cost.on_gpus`, which `train --dry-run` uses too; costs are those of
`edm_ray.config.published.scaling_costs`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from edm_ray.config.published import PAPER_IMAGES, V100_HOURS
from edm_ray.diffusion.samplers import Heun
from edm_ray.search.objective import Objective
from edm_ray.search.plan import SweepPlan
from edm_ray.search.race import Race, rungs
from edm_ray.search.space import Space
from edm_ray.training.cost import Costs, Estimate, Workload, exposed

MEASURED_FILE = Path(__file__).with_name("measured.json")
MEASURED = json.loads(MEASURED_FILE.read_text())["measured"]


@dataclass(frozen=True)
class Sampled:
    """A data set whose model is trained, and sampled in a sweep."""

    train: Workload
    nfe: int
    """Network calls an image, for the sweep."""

    @property
    def name(self) -> str:
        return self.train.name

    def call_rate(self, costs: Costs) -> float:
        """Network calls/s of an A100 in sampling."""
        return self.train.call_rate(costs)


def _sampled(name: str, family: str, batch: int, gradient_bytes: float, num_steps: int) -> Sampled:
    train = Workload(name, PAPER_IMAGES[family], batch, gradient_bytes, V100_HOURS[family])
    return Sampled(train, Heun(num_steps=num_steps).nfe)


WORKLOADS = (
    _sampled("CIFAR-10", "cifar10", 512, MEASURED["gradient_bytes"][0], 18),
    _sampled("ImageNet-64", "imagenet64", 4096, 295.9e6 * 4, 256),
)


def two_processes(images: int, better: bool, costs: Costs) -> float:
    """A step of two processes of this machine, s, from its measured parts (research/scale/two_processes.py)."""
    end = 0 if better else 1
    alone, reducing = (MEASURED[f"ddp_{images}_{part}_s"][end] for part in ("alone", "reduce"))
    return float(alone + exposed(alone, reducing, costs))


CONFIRMED = 3
"""Settings of a sweep that are confirmed on fresh seeds."""
_BATCH, _RACES = 6, 2
"""Settings that the model of the FID proposes at a time; races, one to polish and one at the end."""


def search_chunks(plan: SweepPlan, starts: int) -> int:
    """At most so many for the search, with deterministic sampling and so many starts."""
    return plan.strategy.most_chunks(1 + starts, Space(name="any"), Objective())


def stages(plan: SweepPlan, starts: int, concurrent: int, better: bool) -> list[tuple[int, int, int]]:
    """(trials, chunks of each, rounds of decisions). Trials of a round run side by side, chunks of a trial too.

    The search takes its upper bound of chunks at the worse end, half of it, as is common, at the better.
    """
    race = plan.strategy
    assert isinstance(race, Race)
    looks = 1 + starts + race.num_line + race.num_global
    total = search_chunks(plan, starts) // (2 if better else 1)
    raced = max(0, total - (looks + race.num_model) * race.initial_chunks)
    doublings = rungs(race, Objective())
    trials = _RACES * sum(settings for settings, _ in doublings)
    return [
        (looks, race.initial_chunks, math.ceil(looks / concurrent)),
        (race.num_model, race.initial_chunks, math.ceil(race.num_model / _BATCH)),
        (trials, math.ceil(raced / trials), _RACES * len(doublings)),
        (CONFIRMED, plan.confirm_chunks, 1),
    ]


@dataclass(frozen=True)
class SweepLoad:
    work: Sampled
    plan: SweepPlan
    starts: int
    concurrent: int


def sweep(load: SweepLoad, count: int, better: bool, costs: Costs) -> Estimate:
    """A whole sweep on ``count`` A100s: first looks, the model's proposals, races, confirmation.

    One FID with error bars a trial.
    """
    work, plan = load.work, load.plan
    chunk = plan.chunk_size * (work.nfe / work.call_rate(costs) + 1 / costs["inception"])
    jackknife = 11 * costs["fid"]
    sampling = waiting = deciding = 0.0
    for trials, chunks, rounds in stages(plan, load.starts, load.concurrent, better):
        at_once = trials * chunks / rounds
        sampling += trials * chunks * chunk / count
        # A round ends with its last chunk: GPUs beyond the chunks in flight have nothing to do.
        waiting += rounds * math.ceil(at_once / count) * chunk - trials * chunks * chunk / count
        deciding += rounds * (jackknife + chunks * costs["sums"]) + trials * chunks * costs["task"]
    seconds = sampling + waiting + deciding
    parts = {"too few chunks in flight": waiting, "FID algebra": deciding}
    efficiency = sampling / seconds
    worst = max(parts, key=lambda name: parts[name])
    hours = seconds / 3600
    return Estimate(hours, efficiency, worst if efficiency < 0.95 else "none", hours * count * costs["a100_hour"])
