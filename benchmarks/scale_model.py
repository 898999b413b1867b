"""The arithmetic behind docs/scale.md: a step, a run and a sweep on N GPUs, from costs of their parts.

Everything is worked out twice, with every input at its better and at its worse end; the results are the ranges. A step
is its slowest part: compute (images a GPU, with small batches used badly) plus what of the all-reduce compute does not
hide, plus the host; or reading, when that cannot keep up.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from edm_ray.config.published import V100_HOURS, gpu_price, prices
from edm_ray.diffusion.samplers import sampler
from edm_ray.search.objective import Objective
from edm_ray.search.plan import SweepPlan
from edm_ray.search.race import Race, rungs
from edm_ray.search.space import Space

MEASURED = json.loads(Path(__file__).with_name("scale.json").read_text())["measured"]
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Input:
    """One cost, at its better and its worse end."""

    name: str
    better: float
    worse: float
    unit: str
    kind: str
    """measured | published | assumed."""
    source: str


def _measured(name: str, key: str, unit: str, source: str, rate: bool = False) -> Input:
    low, high = sorted(MEASURED[key])
    better, worse = (high, low) if rate else (low, high)
    return Input(name, better, worse, unit, "measured", source)


CIFAR_V100 = 200e6 / (V100_HOURS["cifar10"].value * 3600)
IMAGENET_A100 = 2500e6 / (V100_HOURS["imagenet64"].value * 3600)
MACHINE = "on 2 shared CPU cores; benchmarks/scale.json"
_SPOT = prices()["spot"]

INPUTS = {
    "cifar_v100": Input(
        "CIFAR-10 training, a V100", CIFAR_V100, CIFAR_V100, "images/s", "published", V100_HOURS["cifar10"].source
    ),
    "imagenet_a100": Input(
        "ImageNet-64 training, an A100",
        IMAGENET_A100,
        IMAGENET_A100,
        "images/s",
        "published",
        V100_HOURS["imagenet64"].source,
    ),
    "a100_by_v100": Input("A100 / V100 for this network", 3.0, 1.8, "x", "assumed", "mixed precision; not measured"),
    "half_batch": Input(
        "images a GPU at which half its speed is lost", 1.0, 6.0, "images", "assumed", "small kernels; not measured"
    ),
    "host": Input(
        "host time a step beside the GPU",
        MEASURED["host_step_s"][0] * 0.2,
        MEASURED["host_step_s"][1],
        "s",
        "assumed",
        f"between a fifth and all of a tiny network's whole step, which was measured {MACHINE}",
    ),
    "node_bandwidth": Input("network of a node", 40e9, 10e9, "bytes/s", "assumed", "400 and 100 Gbit/s, less losses"),
    "link_bandwidth": Input("GPUs of one node", 200e9, 80e9, "bytes/s", "assumed", "NVLink, all-reduce bus bandwidth"),
    "hop": Input("latency of one all-reduce hop", 15e-6, 60e-6, "s", "assumed", "between nodes, NCCL tree"),
    "hidden": Input(
        "part of a step that can hide the all-reduce",
        0.6,
        0.0,
        "",
        "assumed",
        "DDP's overlap with the backward pass; on CPUs none was seen (below)",
    ),
    "read": _measured("pictures decoded (PNG, 32x32)", "read_png_images_per_core_s", "images/s a core", MACHINE, True),
    "cores": Input("CPU cores a GPU", 12, 4, "", "assumed", "p4d has 12, g5.xlarge 4"),
    "lost": Input("spot machines lost", 0.002, 0.03, "an hour, each", "assumed", "clouds publish classes, not rates"),
    "restart": Input("a restart after a loss", 60, 300, "s", "assumed", "measured without GPUs: 30 to 80 s"),
    "tick": Input("time between checkpoints", 300, 900, "s", "assumed", "checkpoint_kimg is the user's"),
    "sampling": Input("sampling against training a network call", 1.5, 0.9, "x", "assumed", "no dropout, no optimizer"),
    "inception": Input("Inception features, an A100", 4000, 1200, "images/s", "assumed", "not measured"),
    "fid": _measured("one FID of 2,048 features", "fid_s", "s", MACHINE),
    "sums": _measured("sums of a chunk of 500 images", "chunk_sums_s", "s", MACHINE),
    "task": _measured("a Ray task, many at once", "task_of_many_s", "s", MACHINE),
    "a100_hour": Input(
        "an A100 for an hour",
        gpu_price("A100").value * _SPOT["low"],
        gpu_price("A100").value,
        "USD",
        "assumed",
        f"spot at its lowest to on-demand; cluster/prices.yaml, {prices()['date']}",
    ),
}


@dataclass(frozen=True)
class Costs:
    """Every input at one end."""

    better: bool

    def __getitem__(self, name: str) -> float:
        entry = INPUTS[name]
        return entry.better if self.better else entry.worse


@dataclass(frozen=True)
class Workload:
    name: str
    images: float
    batch: int
    gradient_bytes: float
    nfe: int
    """Network calls an image, for the sweep."""
    rate: str
    """The input with its published training speed."""

    def train_rate(self, costs: Costs) -> float:
        """Images/s an A100 at a large batch."""
        return costs[self.rate] * (costs["a100_by_v100"] if self.rate == "cifar_v100" else 1.0)

    def call_rate(self, costs: Costs) -> float:
        """Network calls/s an A100 in sampling; a training image costs about three forward passes."""
        return 3.0 * self.train_rate(costs) * costs["sampling"]


def _nfe(num_steps: int) -> int:
    assert sampler(num_steps=num_steps).solver == "heun"
    return 2 * num_steps - 1


WORKLOADS = (
    Workload("CIFAR-10", 200e6, 512, MEASURED["gradient_bytes"][0], _nfe(18), "cifar_v100"),
    Workload("ImageNet-64", 2500e6, 4096, 295.9e6 * 4, _nfe(256), "imagenet_a100"),
)


@dataclass(frozen=True)
class Estimate:
    """What N GPUs do, at one end of the inputs."""

    hours: float
    efficiency: float
    """Against N times one GPU at a large batch."""
    bottleneck: str
    dollars: float


def all_reduce(count: int, size: float, costs: Costs) -> float:
    """Ring inside a node, then between nodes, s."""
    inside = min(count, GPUS_A_NODE)
    nodes = math.ceil(count / GPUS_A_NODE)
    time = 2 * (inside - 1) / inside * size / costs["link_bandwidth"]
    if nodes > 1:
        time += 2 * (nodes - 1) / nodes * size / costs["node_bandwidth"] + 2 * math.log2(nodes) * costs["hop"]
    return time


def exposed(compute: float, reducing: float, costs: Costs) -> float:
    """What of the all-reduce a step waits for, s: the backward pass hides the rest."""
    return max(0.0, reducing - costs["hidden"] * compute)


def two_processes(images: int, costs: Costs) -> float:
    """A step of two processes of this machine, s, from its measured parts (benchmarks/scale_ddp.py)."""
    end = 0 if costs.better else 1
    alone, reducing = (MEASURED[f"ddp_{images}_{part}_s"][end] for part in ("alone", "reduce"))
    return float(alone + exposed(alone, reducing, costs))


def train(work: Workload, count: int, costs: Costs) -> Estimate:
    """One run on ``count`` A100s, spot losses included."""
    rate = work.train_rate(costs)
    share = work.batch / count
    ideal = share / rate
    compute = ideal * (1 + costs["half_batch"] / share)
    waited = exposed(compute, all_reduce(count, work.gradient_bytes, costs), costs)
    reading = share / (costs["read"] * costs["cores"])
    step = max(compute + waited + costs["host"], reading)
    nodes = math.ceil(count / GPUS_A_NODE)
    # Losses come at `lost` an hour and node; each costs a restart and half of what lies between two checkpoints.
    wasted = min(0.9, costs["lost"] * nodes * (costs["restart"] + costs["tick"] / 2) / 3600)
    parts = {
        "small batches": compute - ideal,
        "all-reduce": waited,
        "host": costs["host"],
        "reading": max(0.0, reading - compute - waited - costs["host"]),
        "spot losses": step * wasted / (1 - wasted),
    }
    hours = work.images / work.batch * step / (1 - wasted) / 3600
    efficiency = work.images / rate / count / 3600 / hours
    worst = max(parts, key=lambda name: parts[name])
    return Estimate(hours, efficiency, worst if efficiency < 0.95 else "none", hours * count * costs["a100_hour"])


CONFIRMED = 3
"""Settings of a sweep that are confirmed on fresh seeds."""
_BATCH, _RACES = 6, 2
"""Settings that the model of the FID proposes at a time; races, one to polish and one at the end."""


def search_chunks(plan: SweepPlan, starts: int) -> int:
    """At most so many for the search, with deterministic sampling and so many starts."""
    return plan.strategy.most_chunks(1 + starts, Space(name="any"), Objective())


def stages(plan: SweepPlan, starts: int, concurrent: int, costs: Costs) -> list[tuple[int, int, int]]:
    """(trials, chunks of each, rounds of decisions). Trials of a round run side by side, chunks of a trial too.

    The search takes its upper bound of chunks at the worse end, half of it, as is common, at the better.
    """
    race = plan.strategy
    assert isinstance(race, Race)
    looks = 1 + starts + race.num_line + race.num_global
    total = search_chunks(plan, starts) // (2 if costs.better else 1)
    raced = max(0, total - (looks + race.num_model) * race.initial_chunks)
    doublings = rungs(race, Objective())
    trials = _RACES * sum(settings for settings, _ in doublings)
    return [
        (looks, race.initial_chunks, math.ceil(looks / concurrent)),
        (race.num_model, race.initial_chunks, math.ceil(race.num_model / _BATCH)),
        (trials, math.ceil(raced / trials), _RACES * len(doublings)),
        (CONFIRMED, plan.confirm_chunks, 1),
    ]


def sweep(work: Workload, count: int, costs: Costs, plan: SweepPlan, starts: int, concurrent: int) -> Estimate:
    """A whole sweep: first looks, the model's proposals, races, confirmation; one FID with error bars a trial."""
    chunk = plan.chunk_size * (work.nfe / work.call_rate(costs) + 1 / costs["inception"])
    jackknife = 11 * costs["fid"]
    sampling = waiting = deciding = 0.0
    for trials, chunks, rounds in stages(plan, starts, concurrent, costs):
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
