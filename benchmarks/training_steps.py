"""Steady-state steps of the engine under Ray Train against the same engine under torchrun.

    python -m benchmarks.training_steps [--pairs 10] [--workers 1 2] [--ticks 4]

Both sides train all the time and take turns: while one runs, every process of the other is stopped (SIGSTOP), Ray's own
included, so that they meet the same machine and neither pays for the other. A turn's number is its time a step
between the first and the last tick within it. The ratio is taken pair by pair, with a 95 % interval from the pairs'
scatter (t). CPU time a step, of the workers and of everything else, hardly depends on what else the machine does;
it and the time within Ray's calls say what of the difference is whose. CPU and gloo.
`training_start.py`: how long a start takes, and why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from benchmarks.processes import cpu_seconds, family, kind_of
from benchmarks.results import record
from edm_ray.cli import main as edm_ray
from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.training.device import Place
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.run import claim_run

ROOT, MODULE = Path(__file__).parents[1], "benchmarks.training_steps"
STEPS_A_TICK, LIMIT_S = 16, 300
NICENESS = 15
"""Of Ray's workers (RAY_worker_niceness): on a machine that does other things too, both sides must be as modest."""


def config_of(data: DataSet) -> TrainingConfig:
    recipe = preset("digits", data.shape)
    tick = STEPS_A_TICK * recipe.batch_size / 1000
    return configure(recipe, None, ["total_kimg=1000000", f"tick_kimg={tick}", "checkpoint_kimg=1000000"])


def torchrun_worker(data_uri: str, run: str, ticks: str) -> None:
    """One process of the torchrun side."""
    os.nice(NICENESS)
    data, rank, world = open_dataset(data_uri), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        torch.distributed.init_process_group("gloo")

    def on_tick(row: dict[str, Any]) -> None:
        if rank == 0:
            note_tick(ticks, row["nimg"], 0.0)

    config = config_of(data)
    if rank == 0:
        claim_run(run, config, data)
    train(TrainingJob(config=config, dataset=data, run_uri=run), Place(rank=rank, world_size=world), on_tick)


def ray_driver(data_uri: str, run: str, workers: int) -> None:
    """The Ray side: the call that the command makes."""
    from edm_ray.distributed.group import Group
    from edm_ray.distributed.train import train_on_ray

    data = open_dataset(data_uri)
    config = config_of(data)
    claim_run(run, config, data)
    job = TrainingJob(config=config, dataset=data, run_uri=run)
    group = Group(least=workers, most=workers, threads=config.threads)
    train_on_ray(job, group, max_failures=0, on_tick=lambda row: None)


def note_tick(path: str, images: int, waited_s: float) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps([time.monotonic(), images, waited_s]) + "\n")


def ticks_within(path: Path, since: float, until: float) -> list[list[float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if since <= row[0] <= until]


def start(side: str, data: str, root: Path, workers: int) -> subprocess.Popen[bytes]:
    ticks = str(root / f"{side}.ticks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if side == "torchrun":
        own = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m", MODULE]
        command = [*own, "--torchrun-worker", data, str(root / side), ticks]
    else:
        environment |= {"RAY_TRAIN_CALLBACKS": "benchmarks.ticks.Ticks", "EDM_RAY_BENCHMARK_TICKS": ticks}
        command = ["-m", MODULE, "--ray-driver", data, str(root / side), str(workers)]
    return subprocess.Popen([sys.executable, *command], env=environment, start_new_session=True)


def signal_all(side: subprocess.Popen[bytes], number: signal.Signals) -> None:
    for pid in family(side.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def turn(side: subprocess.Popen[bytes], path: Path, ticks: int) -> dict[str, Any]:
    """Let one side run for so many ticks, after a first: ms a step, ms of it within Ray's calls, CPU ms by process."""
    signal_all(side, signal.SIGCONT)
    since = time.monotonic()
    wait_for_ticks(path, since, 1)
    before = cpu_seconds(side.pid)
    wait_for_ticks(path, since, ticks + 1)
    after = cpu_seconds(side.pid)
    signal_all(side, signal.SIGSTOP)
    rows = ticks_within(path, since, math.inf)[: ticks + 1]
    steps = STEPS_A_TICK * ticks
    cpu: dict[str, float] = {}
    for pid, used in after.items():
        kind = kind_of(pid, side.pid)
        cpu[kind] = cpu.get(kind, 0.0) + 1e3 * (used - before.get(pid, 0.0)) / steps
    return {
        "step_ms": 1e3 * (rows[-1][0] - rows[0][0]) / steps,
        "waited_ms": 1e3 * sum(row[2] for row in rows[1:]) / steps,
        "cpu_ms": cpu,
    }


def wait_for_ticks(path: Path, since: float, count: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while len(ticks_within(path, since, math.inf)) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"no tick in {LIMIT_S} s: {path}")
        time.sleep(0.02)


def compare(data: str, root: Path, workers: int, pairs: int, ticks: int) -> list[dict[str, Any]]:
    root.mkdir()
    sides = {}
    try:
        for name in ("torchrun", "ray"):
            sides[name] = start(name, data, root, workers)
            while len(ticks_within(root / f"{name}.ticks", 0, math.inf)) < 4:
                if sides[name].poll() is not None:
                    raise SystemExit(f"{name} ended by itself")
                time.sleep(0.2)
            signal_all(sides[name], signal.SIGSTOP)
        result = []
        for pair in range(pairs):
            order = ["torchrun", "ray"] if pair % 2 == 0 else ["ray", "torchrun"]
            result.append({name: turn(sides[name], root / f"{name}.ticks", ticks) for name in order})
        return result
    finally:
        for side in sides.values():
            signal_all(side, signal.SIGKILL)
            side.wait()


def row_of(workers: int, pairs: list[dict[str, Any]]) -> str:
    def median(side: str, what: str) -> float:
        return statistics.median(pair[side][what] for pair in pairs)

    def cpu(side: str, own: bool) -> list[float]:
        """CPU ms a step: of the workers that train, or of everything else."""
        return [sum(ms for kind, ms in pair[side]["cpu_ms"].items() if (kind == "worker") == own) for pair in pairs]

    steps = ratio_of([pair["ray"]["step_ms"] / pair["torchrun"]["step_ms"] for pair in pairs])
    own = ratio_of([b / a for a, b in zip(cpu("torchrun", True), cpu("ray", True), strict=True)])
    ours = statistics.median(pair["ray"]["cpu_ms"].get("driver", 0.0) for pair in pairs)
    others = statistics.median(cpu("ray", False)) - ours
    return (
        f"| {workers} | {median('torchrun', 'step_ms'):.1f} ms | {median('ray', 'step_ms'):.1f} ms | {steps} "
        f"| {median('ray', 'waited_ms'):.2f} ms | {statistics.median(cpu('torchrun', True)):.1f} ms "
        f"| {statistics.median(cpu('ray', True)):.1f} ms | {own} | {ours:.2f} ms | {others:.2f} ms |"
    )


def ratio_of(ratios: list[float]) -> str:
    """Geometric mean, and its 95 % interval."""
    logs, count = [math.log(ratio) for ratio in ratios], len(ratios)
    mean = statistics.mean(logs)
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(logs) / math.sqrt(count) if count > 1 else math.inf
    return f"{math.exp(mean):.3f} ({math.exp(mean - half):.3f}-{math.exp(mean + half):.3f})"


def numbers_of(everything: dict[int, list[dict[str, Any]]]) -> dict[str, tuple[str, list[float]]]:
    numbers: dict[str, tuple[str, list[float]]] = {}
    for workers, pairs in everything.items():
        name = f"{workers} workers"
        for side in ("torchrun", "ray"):
            numbers[f"{name}, {side}, a step"] = ("ms", [pair[side]["step_ms"] for pair in pairs])
        numbers[f"{name}, ray, within Ray's calls a step"] = ("ms", [pair["ray"]["waited_ms"] for pair in pairs])
        ratios = [pair["ray"]["step_ms"] / pair["torchrun"]["step_ms"] for pair in pairs]
        numbers[f"{name}, ray / torchrun"] = ("", ratios)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ticks", type=int, default=4)
    parser.add_argument("--torchrun-worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--ray-driver", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torchrun_worker:
        torchrun_worker(*args.torchrun_worker)
        return
    os.environ.setdefault("EDM_RAY_LOCAL_CPUS", "4")
    if args.ray_driver:
        ray_driver(args.ray_driver[0], args.ray_driver[1], int(args.ray_driver[2]))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # or what was started would stay
    with tempfile.TemporaryDirectory() as folder:
        root, everything = Path(folder), {}
        edm_ray(["prepare", "digits", str(root / "data")])
        print(
            "| workers | step, torchrun | step, Ray | ratio (95 % interval) | in Ray's calls "
            "| workers' CPU a step, torchrun | Ray | ratio | driver's CPU a step | Ray's own |"
        )
        print("|" + "---|" * 10)
        for workers in args.workers:
            data = str(root / "data" / "train")
            everything[workers] = compare(data, root / f"workers-{workers}", workers, args.pairs, args.ticks)
            print(row_of(workers, everything[workers]), flush=True)
        record("training_steps", numbers_of(everything), {"pairs": args.pairs, "ticks": args.ticks})


if __name__ == "__main__":
    main()
