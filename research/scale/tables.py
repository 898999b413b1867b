"""What 8, 64 and 512 GPUs would do, and what it would cost: the tables of README.md and the bills in cluster/.

    python -m research.scale.tables                          writes them
    python -m research.scale.tables --check                  exit code 1 when they are not what would be written
    python -m research.scale.measure                  measures this machine first

Nothing here was run on a GPU. Inputs are measured (on CPUs), published or assumed, and said so, one by one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from edm_ray.config.published import gpu_price, prices, scaling_costs
from edm_ray.config.training import TrainingConfig
from edm_ray.search.plan import SweepPlan
from edm_ray.training.checkpoint_interval import best_interval, lost_share
from edm_ray.training.cost import Costs, Estimate, costs_at, on_gpus
from research.scale.model import (
    CONFIRMED,
    MEASURED,
    MEASURED_FILE,
    WORKLOADS,
    Sampled,
    SweepLoad,
    search_chunks,
    sweep,
    two_processes,
)
from research.scale.two_processes import IMAGES

ROOT = Path(__file__).parents[2]
DOC = ROOT / "research" / "scale" / "README.md"
COUNTS = (8, 64, 512)
STARTS, CONCURRENT = 2, 16
FAILING, FAILURE_MINUTES = 64, 45
RESTART_S = 14.4
"""From the command to the first step, two workers on two cores (benchmarks/training.md)."""
COPY_BYTES = 102 * 2**20 / 0.18
"""A second, of a checkpoint (benchmarks/training.md)."""
BEGIN, END = "<!-- made by research/scale/tables.py: begin -->", "<!-- end -->"


def number(value: float) -> str:
    """Two significant digits: more would pretend."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{float(f'{value:.2g}'):g}"


def span(low: float, high: float) -> str:
    one, two = number(low), number(high)
    return one if one == two else f"{one} to {two}"


def both(estimate: Callable[[bool, Costs], Estimate]) -> tuple[Estimate, Estimate]:
    return estimate(True, costs_at(True)), estimate(False, costs_at(False))


def row(name: str, count: int, ends: tuple[Estimate, Estimate]) -> str:
    better, worse = ends
    first = better.bottleneck if better.bottleneck == worse.bottleneck else f"{worse.bottleneck} ({better.bottleneck})"
    efficiency = span(*sorted((100 * better.efficiency, 100 * worse.efficiency)))
    return (
        f"| {name} | {count} | {span(better.hours, worse.hours)} | {efficiency} % | {first} | "
        f"{span(better.dollars, worse.dollars)} |"
    )


def of_training(work: Sampled, count: int) -> tuple[Estimate, Estimate]:
    return both(lambda better, costs: on_gpus(work.train, count, costs))


def of_sweep(work: Sampled, count: int) -> tuple[Estimate, Estimate]:
    load = SweepLoad(work, SweepPlan(), STARTS, CONCURRENT)
    return both(lambda better, costs: sweep(load, count, better, costs))


def tables() -> str:
    lines = ["### Training", "", "| data set | A100s | hours | efficiency | first bottleneck | USD |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [row(work.name, count, of_training(work, count)) for work in WORKLOADS for count in COUNTS]
    plan = SweepPlan()
    most = (search_chunks(plan, STARTS) + CONFIRMED * plan.confirm_chunks) * plan.chunk_size
    about = f"strategy race, at most {most:,} images, half of the search at the better end; {CONCURRENT} trials at once"
    lines += ["", f"### A full sweep ({about})", ""]
    lines += ["| data set | A100s | hours | efficiency | first bottleneck | USD |", "|---|---|---|---|---|---|"]
    lines += [row(work.name, count, of_sweep(work, count)) for work in WORKLOADS for count in COUNTS]
    lines += [
        "",
        "Hours, efficiency and USD run from every input at its better end to every input at its worse end. Efficiency "
        "is against N times one GPU at a large batch. The first bottleneck is the largest loss at the worse end (at "
        "the better end in brackets, when it is another).",
        "",
        "### Inputs",
        "",
        "| input | better | worse | unit | kind | source |",
        "|---|---|---|---|---|---|",
    ]
    for entry in scaling_costs().values():
        ends = f"{entry.better:,.4g} | {entry.worse:,.4g}"
        lines.append(f"| {entry.name} | {ends} | {entry.unit} | {entry.kind} | {entry.source} |")
    lines += ["", "### The model against what it can be compared with here", *compared()]
    lines += ["", f"### A failure each {FAILURE_MINUTES} minutes on {FAILING} A100s", *failures()]
    about = json.loads(MEASURED_FILE.read_text())["about"]
    dates = ", ".join(f"{part} {date}" for part, date in about["dates"].items())
    lines += ["", f"Measured ({dates}) on {about['machine']}, torch {about['torch']}."]
    return "\n".join(lines)


def compared() -> list[str]:
    """Two processes over gloo, which the model puts together from their parts, beside what they took."""
    lines = [
        "",
        "Two DDP processes of this machine over gloo (a U-Net of 11 million parameters, 8x8 pictures, a thread each): "
        "a step put together by the same formula from one process's step and a bare all-reduce, and the step that was "
        "measured; milliseconds, lower to upper quartile. What was measured lies at the worse end of the formula: gloo "
        "computes on the cores that the network computes on, so nothing is hidden, and DDP copies its buckets. That is "
        "why the worse end of the inputs hides nothing. Whether GPUs hide more is not known here.",
        "",
        "| images a process | one process | all-reduce | by the model | measured |",
        "|---|---|---|---|---|",
    ]
    for images in IMAGES:
        parts = (MEASURED[f"ddp_{images}_{part}_s"] for part in ("alone", "reduce", "together"))
        alone, reducing, together = (span(*(1000 * value for value in part)) for part in parts)
        model = span(*(1000 * two_processes(images, better, costs_at(better)) for better in (True, False)))
        lines.append(f"| {images} | {alone} | {reducing} | {model} | {together} |")
    return lines


def failures() -> list[str]:
    """What failures of any of the nodes would lose: at the presets' checkpoints, and at the best interval."""
    mtbf = 60.0 * FAILURE_MINUTES
    ends = scaling_costs()["restart"]
    restarts = (RESTART_S, ends.better, ends.worse)
    lines = [
        "",
        f"A model (Daly 2006, `edm_ray/training/checkpoint_interval.py`): a failure stops all {FAILING} and loses what "
        f"came after the last checkpoint. A restart of {RESTART_S:g} s was measured without GPUs (the whole command on "
        f"two cores), {ends.better:g} and {ends.worse:g} s are the inputs above. A checkpoint holds the training up "
        f"for its copy, at the {COPY_BYTES / 2**20:,.0f} MiB/s that [`benchmarks/training.md`]"
        "(../../benchmarks/training.md) has. Goodput: the share of the time that makes new images.",
        "",
        f"| data set | a checkpoint each | goodput, restart {' s | '.join(f'{each:g}' for each in restarts)} s |",
        "|---|---|---|---|---|",
    ]
    for work in WORKLOADS:
        cost = 4 * work.train.gradient_bytes / COPY_BYTES
        calm = on_gpus(work.train, FAILING, {**costs_at(False), "lost": 0.0})
        preset = 1000 * TrainingConfig().checkpoint_kimg / (work.train.images / (3600 * calm.hours))
        for name, seconds in (("500 kimg", preset), ("the best", best_interval(cost, mtbf))):
            good = (f"{1 - lost_share(seconds, cost, mtbf, restart):.1%}" for restart in restarts)
            lines.append(f"| {work.name} | {name}: {number(seconds)} s | {' | '.join(good)} |")
    return lines


def bill(folder: str) -> str:
    """From nothing to a finished CIFAR-10 sweep on 8 spot A10G, with what the set-up itself costs."""
    table = prices()
    spot = table["spot"]
    # A10G against A100 for these networks: assumed between a third and a half.
    ratio = (0.5, 0.33)
    gpu = gpu_price("A10G").value
    work = WORKLOADS[0]
    rows, total_low, total_high = [], 0.0, 0.0
    for name, ends in (("train CIFAR-10 to the end", of_training(work, 8)), ("sweep", of_sweep(work, 8))):
        hours = [estimate.hours / part for estimate, part in zip(ends, ratio, strict=True)]
        cost = [hours[0] * 8 * gpu * spot["low"], hours[1] * 8 * gpu * spot["high"]]
        rows.append(f"| {name}, 8 spot A10G | {span(*hours)} | {span(*cost)} |")
        total_low, total_high = total_low + cost[0], total_high + cost[1]
        if name.startswith("train"):
            train_hours = hours
        else:
            sweep_hours = hours
    hours = [train_hours[0] + sweep_hours[0], train_hours[1] + sweep_hours[1]]
    fixed = table["machine_hour"]["m6i.xlarge"] + (table["control_plane_hour"] if folder == "kuberay" else 0.0)
    if folder != "sky":
        what = "head" + (" and control plane" if folder == "kuberay" else "")
        rows.append(f"| {what}, on demand, meanwhile | {span(*hours)} | {span(hours[0] * fixed, hours[1] * fixed)} |")
        total_low, total_high = total_low + hours[0] * fixed, total_high + hours[1] * fixed
    cpu = table["machine_hour"]["m6i.4xlarge"]
    rows.append(f"| data and reference, one m6i.4xlarge | 0.5 to 2 | {span(0.5 * cpu, 2 * cpu)} |")
    rows.append(f"| storage, 20 GB for a month | | {span(20 * table['storage']['gb_month'], 1.0)} |")
    total_low, total_high = total_low + 0.5 * cpu, total_high + 2 * cpu + 1.0
    lines = [
        f"All of it is assumed: prices of {table['date']} from [`cluster/prices.yaml`](../prices.yaml), which you can "
        "edit (spot between its low and high part of the list price), speeds from "
        "[`research/scale`](../../research/scale/README.md), an A10G as 0.33 to 0.5 of an A100. `python -m "
        "research.scale.tables` recomputes it.",
        "",
        "| what | hours | USD |",
        "|---|---|---|",
        *rows,
        f"| **together** | | **{span(total_low, total_high)}** |",
    ]
    return "\n".join(lines)


def put(path: Path, text: str) -> str:
    """The file's content with the part between the marks replaced."""
    content = path.read_text()
    found = re.search(re.escape(BEGIN) + r".*?" + re.escape(END), content, re.S)
    if found is None:
        sys.exit(f"{path}: no marks {BEGIN} ... {END}")
    return content[: found.start()] + f"{BEGIN}\n{text}\n{END}" + content[found.end() :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    wanted = {DOC: tables()}
    for folder in ("kuberay", "ray-up", "sky"):
        wanted[ROOT / "cluster" / folder / "README.md"] = bill(folder)
    stale = []
    for path, text in wanted.items():
        content = put(path, text)
        if content != path.read_text():
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(content)
    if args.check and stale:
        sys.exit(f"not up to date: {', '.join(stale)}; run python -m research.scale.tables")
    print(f"{'written' if stale else 'up to date'}: {', '.join(stale) if stale else 'all'}")


if __name__ == "__main__":
    main()
