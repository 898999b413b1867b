"""The engine under Ray Train against the same engine under torchrun: steady-state steps, and time to the first tick.

    python benchmarks/training.py [--pairs 10] [--workers 1 2] [--kimg 6.4]

Runs alternate. Steady state is the median over a run's ticks after the second; the ratio is taken pair by pair, with a
95 % interval from the pairs' scatter (t). Ray is started once; its start is timed apart. CPU and gloo.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from scipy.stats import t as student

from edm_ray.cli import main as edm_ray
from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.schema import TrainingConfig
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.training.engine import Place, train
from edm_ray.training.run import claim_run, read_metrics

TICK_KIMG = 0.64


def config_of(data: DataSet, kimg: float) -> TrainingConfig:
    settings = [f"total_kimg={kimg}", f"tick_kimg={TICK_KIMG}", "checkpoint_kimg=1000"]
    return configure(preset("digits", data.shape), None, settings)


def torchrun_worker(data_uri: str, run: str, kimg: float) -> None:
    """One process of the torchrun side."""
    torch.set_num_threads(1)
    data, rank, world = open_dataset(data_uri), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        torch.distributed.init_process_group("gloo")
    config = config_of(data, kimg)
    if rank == 0:
        claim_run(run, config, data)
    train(config, data, run, Place(rank=rank, world_size=world), {})
    if world > 1:
        torch.distributed.destroy_process_group()


def run_torchrun(data: DataSet, run: Path, kimg: float, workers: int) -> float:
    """Seconds to the first tick."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", __file__]
    arguments = ["--worker", data.uri, str(run), str(kimg)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.time()
    subprocess.run([*command, *arguments], check=True, env=environment, capture_output=True)
    return first_tick(run) - began


def run_ray(data: DataSet, run: Path, kimg: float, workers: int) -> float:
    """Seconds to the first tick, Ray being there already."""
    from edm_ray.orchestration.train import train_on_ray

    config = config_of(data, kimg)
    claim_run(str(run), config, data)
    began = time.time()
    seen: list[float] = []
    train_on_ray(
        config,
        data,
        str(run),
        {},
        workers=(workers, workers),
        device="cpu",
        max_failures=0,
        on_tick=lambda row: seen.append(time.time()),
    )
    return seen[0] - began


def first_tick(run: Path) -> float:
    """When the first row of metrics was written: the run's end less its later ticks."""
    rows = read_metrics(str(run))
    later = sum(TICK_KIMG * 1000 / row["images_per_s"] for row in rows[1:])
    return (run / "metrics.jsonl").stat().st_mtime - later


def step_ms(run: Path, batch: int) -> float:
    rows = read_metrics(str(run))[2:]
    return statistics.median(1e3 * batch / row["images_per_s"] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kimg", type=float, default=6.4)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torchrun_worker(args.worker[0], args.worker[1], float(args.worker[2]))
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("EDM_RAY_LOCAL_CPUS", "4")
    from edm_ray.orchestration.session import session

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        edm_ray(["prepare", "digits", str(root / "data")])
        data = open_dataset(str(root / "data" / "train"))
        began = time.monotonic()
        with session():
            print(f"\nRay started in {time.monotonic() - began:.1f} s; {args.pairs} pairs\n")
            print("| workers | step, torchrun | step, Ray Train | ratio (95 % interval) | first tick, torchrun | Ray |")
            print("|---|---|---|---|---|---|")
            for workers in args.workers:
                times: dict[str, list[float]] = {"torchrun": [], "ray": []}
                firsts: dict[str, list[float]] = {"torchrun": [], "ray": []}
                batch = config_of(data, args.kimg).batch_size
                for pair in range(args.pairs):
                    sides = [("torchrun", run_torchrun), ("ray", run_ray)]
                    for name, run_side in sides if pair % 2 == 0 else sides[::-1]:
                        run = root / f"{workers}-{pair}-{name}"
                        firsts[name].append(run_side(data, run, args.kimg, workers))
                        times[name].append(step_ms(run, batch))
                print(row_of(workers, times, firsts), flush=True)
                (root / "times.json").write_text(json.dumps(times))


def row_of(workers: int, times: dict[str, list[float]], firsts: dict[str, list[float]]) -> str:
    ratios = [math.log(b / a) for a, b in zip(times["torchrun"], times["ray"], strict=True)]
    mean, count = statistics.mean(ratios), len(ratios)
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(ratios) / math.sqrt(count) if count > 1 else math.inf
    low, high = math.exp(mean - half), math.exp(mean + half)
    steps = [f"{statistics.median(values):.1f} ms" for values in times.values()]
    starts = [f"{statistics.median(values):.1f} s" for values in firsts.values()]
    ratio = f"{math.exp(mean):.3f} ({low:.3f}-{high:.3f})"
    return f"| {workers} | {steps[0]} | {steps[1]} | {ratio} | {starts[0]} | {starts[1]} |"


if __name__ == "__main__":
    main()
