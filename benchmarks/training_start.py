"""From the command to the first step, and from a SIGKILLed worker to the next step, by cause.

    python -m benchmarks.training_start [--runs 5] [--workers 2] [--manager]

Each run is the command on a Ray of its own; when it trains, one worker is killed. Every process marks what it does
(`marks.py`); a row is the time between two marks, of the slowest worker where all are waited for. CPU
seconds that each kind of process had used when the first step was done say whose they were. --manager: with the process
that Ray Train starts for data sets (`edm_ray/distributed/ray_private.py` leaves it out), every other run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.marks import MARKS_VARIABLE, mark, marked, read_marks
from benchmarks.processes import cpu_seconds, family, kind_of, process_began
from benchmarks.results import record

# What is done -> the mark that ends it. The mark before it in this list begins it.
START = {
    "driver: Python, torch and Ray imported": "imported",
    "data set, configuration": "ray.init begins",
    "ray.init": "ray.init ends",
    "driver: checks before the run": "fit begins",
    "controller: process, imports": "controller started",
    "placement": "group begins",
    "workers: processes": "worker process",
    "workers: Ray, torch imported": "worker context",
    "torch.distributed": "process group ends",
    "train function read, edm_ray imported": "train function read ends",
    "data set opened": "reader ends",
    "network, DDP, optimizer (torch._dynamo imported)": "network ends",
    "checkpoint looked for": "checkpoint read ends",
    "first step": "first step ends",
}
KILL = {
    "noticed": "controller: RestartingState",
    "the other worker ended": "group's end ends",
    **{what: name for what, name in START.items() if list(START).index(what) >= list(START).index("placement")},
}
NOTED_S = 3.0


def drive(data: str, run: str, workers: str, manager: bool) -> None:
    """The command, with marks."""
    mark("command", process_began())
    import ray
    from ray.train.torch import TorchTrainer

    import edm_ray.cli.train
    import edm_ray.distributed.train
    from edm_ray.cli import main as command

    mark("imported")
    if manager:
        edm_ray.distributed.train.Trainer = TorchTrainer
    marked(ray, "init", "ray.init")
    marked(TorchTrainer, "fit", "fit")
    settings = ["total_kimg=100000", "tick_kimg=2.048", "checkpoint_kimg=2.048"]
    raise SystemExit(
        command(["train", "--data", data, "--out", run, "--preset", "digits", "--workers", workers, "--set", *settings])
    )


def wait_for(path: Path, name: str, count: int, driver: subprocess.Popen[bytes], since: float = 0.0) -> None:
    while sum(row["name"] == name and row["moment"] > since for row in read_marks(path)) < count:
        if driver.poll() is not None:
            raise SystemExit("the run ended by itself")
        time.sleep(0.1)


def one_run(data: str, root: Path, workers: int, manager: bool) -> dict[str, dict[str, float]]:
    root.mkdir()
    marks = root / "marks"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        MARKS_VARIABLE: str(marks),
        "OMP_NUM_THREADS": "1",
    }
    environment["RAY_TRAIN_CALLBACKS"] = "benchmarks.marks.Marks"
    command = [
        sys.executable,
        "-m",
        "benchmarks.training_start",
        "--drive",
        data,
        str(root / "run"),
        str(workers),
        str(int(manager)),
    ]
    driver = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_for(marks, "first step ends", workers, driver)
        used: dict[str, float] = {}
        for pid, seconds in cpu_seconds(driver.pid).items():
            kind = kind_of(pid, driver.pid)
            used[kind] = used.get(kind, 0.0) + seconds
        time.sleep(NOTED_S)
        killed = time.time()
        os.kill([row["pid"] for row in read_marks(marks) if row["name"] == "worker process"][-1], signal.SIGKILL)
        wait_for(marks, "first step ends", workers, driver, since=killed)
    finally:
        for pid in family(driver.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        driver.wait()
    rows = read_marks(marks)
    began = next(row["moment"] for row in rows if row["name"] == "command")
    first = [row for row in rows if row["moment"] < killed]
    again = [row for row in rows if row["moment"] > killed]
    return {"start": spans(first, began, START), "kill": spans(again, killed, KILL), "cpu": used}


def spans(rows: list[dict[str, Any]], began: float, causes: dict[str, str]) -> dict[str, float]:
    """Seconds by cause; "all" is their sum."""
    result, before = {}, began
    for what, name in causes.items():
        moment = max((row["moment"] for row in rows if row["name"] == name), default=before)
        result[what], before = max(moment - before, 0.0), max(moment, before)
    return {**result, "all": before - began}


def table(title: str, runs: list[dict[str, float]]) -> str:
    lines = [f"| {title} | s, median of {len(runs)} (least-most) |", "|---|---|"]
    for what in {what: None for run in runs for what in run}:
        values = [run.get(what, 0.0) for run in runs]
        lines.append(f"| {what} | {statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--manager", action="store_true")
    parser.add_argument("--drive", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("EDM_RAY_LOCAL_CPUS", "2")
    if args.drive:
        drive(*args.drive[:3], manager=args.drive[3] == "1")
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # or what was started would stay
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        from edm_ray.cli import main as command

        command(["prepare", "digits", str(root / "data")])
        everything: dict[str, list[Any]] = {"as it is": [], "with the manager": []}
        for number in range(args.runs):
            for name in everything if args.manager else ["as it is"]:
                run = root / f"{number}-{len(everything['with the manager'])}-{name[:2]}"
                data = str(root / "data" / "train")
                everything[name].append(one_run(data, run, args.workers, name != "as it is"))
        for name, runs in everything.items():
            for part in ("start", "kill", "cpu") if runs else ():
                print(f"\n{name}\n\n" + table(part, [run[part] for run in runs]))
        numbers = {
            f"{name}, {part}: {what}": ("s", [run[part].get(what, 0.0) for run in runs])
            for name, runs in everything.items()
            for part in ("start", "kill", "cpu")
            for what in {what: None for run in runs for what in run[part]}
        }
        record("training_start", numbers, {"runs": args.runs, "workers": args.workers, "manager": args.manager})


if __name__ == "__main__":
    main()
