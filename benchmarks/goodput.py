"""What failures cost a training: useful images a second of a run that is struck, over those of a calm one.

    python -m benchmarks.goodput [--minutes 20] [--every 5 1] [--out DIR]

Two workers on a Ray of the command's own. A calm run of as many images as take about --minutes, then for each of
--every the same run, with a SIGKILL each so many minutes: of a worker, of the command, or of the node's raylet (with
which all of its Ray goes), in an order that --seed decides. A command that ends is started again at once; a strike that
is due before the run trains again comes half of --every later. All runs must end with the same parameters and rows of
metrics. Every step is noted (`progress.py`), so each strike's time is known:

- noticed: until Ray Train plans a new group, or the command has ended;
- restart: from there to the first new step;
- twice: the images since the checkpoint that was resumed from, at the calm run's pace.

--node-hours of the command is --every. With --interval-kimg it makes its checkpoints each so many thousand images only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.marks import MARKS_VARIABLE, read_marks
from benchmarks.processes import family, kind_of
from benchmarks.results import record

KINDS = ("worker", "driver", "raylet")
CLOCKS = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}
PARTS = ("noticed, s", "restart, s", "images made twice", "the same, s", "all, s")
BATCH, TICK_KIMG = 128, 12.8
CALIBRATION_KIMG = 51.2
STUCK_S = 300.0
"""A run that makes no step for so long is given up."""


@dataclass(frozen=True)
class Strike:
    kind: str
    moment: float
    noticed: float
    """When the command had ended (driver, raylet); a worker's death is noticed by Ray Train's controller."""


@dataclass
class Run:
    """One run, to its end."""

    folder: Path
    seconds: float = 0.0
    strikes: list[Strike] = field(default_factory=list)

    @property
    def marks(self) -> list[dict[str, Any]]:
        return read_marks(self.folder / "marks")

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [row for row in self.marks if row["name"] == "step"]

    def result(self) -> tuple[bytes, list[dict[str, Any]]]:
        """What must be equal bit for bit."""
        from edm_ray.models import open_model
        from edm_ray.training.metrics import read_metrics
        from edm_ray.training.run import model_uri

        run = str(self.folder / "run")
        rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_metrics(run)]
        return open_model(model_uri(run)).weights, rows


class Command:
    """`edm-ray train`, started again whenever it ends without having come to its end."""

    def __init__(self, data: str, folder: Path, kimg: float, more: Sequence[str]) -> None:
        edm_ray = str(Path(sys.executable).with_name("edm-ray"))
        settings = [f"total_kimg={kimg}", f"tick_kimg={TICK_KIMG}", f"batch_size={BATCH}"]
        self.words = [edm_ray, "train", "--data", data, "--out", str(folder / "run"), "--preset", "digits"]
        self.words += ["--workers", "2", "--max-failures", "1000", *more, *settings]
        self.log = folder / "log"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            MARKS_VARIABLE: str(folder / "marks"),
            "RAY_TRAIN_CALLBACKS": "benchmarks.progress.Progress",
        }
        self.environment.setdefault("EDM_RAY_LOCAL_CPUS", "2")
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.words, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def victims(self, kind: str) -> list[int]:
        root = self.process.pid
        return [root] if kind == "driver" else [pid for pid in family(root) if kind_of(pid, root) == kind]

    def end(self) -> None:
        for pid in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def victims_to_come(seed: int) -> Iterator[tuple[str, random.Random]]:
    """Each kind once in three strikes; and what chooses among several of a kind."""
    for turn in range(10**6):
        chance = random.Random(f"goodput/{seed}/{turn}")
        for kind in chance.sample(KINDS, len(KINDS)):
            yield kind, chance


def make_run(command: Command, folder: Path, every_s: float | None, seed: int) -> Run:
    """To its end, with a strike each ``every_s``."""
    run, began, chosen = Run(folder), time.time(), victims_to_come(seed)
    strike_at, due = began + (every_s or float("inf")), None
    try:
        while True:
            code = command.process.poll()
            if code == 0:
                break
            if code is not None:
                command.start()
            require_steps(run, began, command)
            if every_s and time.time() >= strike_at:
                if trains_again(run):
                    due, strike_at = due or next(chosen), strike_at + every_s
                else:  # a machine that is too busy for so many strikes: it must get somewhere
                    strike_at = time.time() + every_s / 2
            if due is not None and (pids := command.victims(due[0])):
                run.strikes.append(strike(command, due[0], due[1].choice(sorted(pids))))
                due = None
            time.sleep(0.1)
    finally:
        command.end()
    run.seconds = time.time() - began
    return run


def trains_again(run: Run) -> bool:
    """Whether there was a step since the last strike."""
    last = run.strikes[-1].noticed if run.strikes else 0.0
    return any(row["moment"] > last for row in run.steps[-1:])


def strike(command: Command, kind: str, pid: int) -> Strike:
    moment = time.time()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if kind != "worker":
        command.process.wait(STUCK_S)
    return Strike(kind, moment, time.time())


def require_steps(run: Run, began: float, command: Command) -> None:
    marks = run.folder / "marks"
    last = max(began, marks.stat().st_mtime if marks.exists() else 0.0)
    if time.time() - last > STUCK_S:
        raise SystemExit(f"no step for {STUCK_S:.0f} s:\n{command.log.read_text()[-3000:]}")


def costs(run: Run, images_per_s: float) -> list[dict[str, Any]]:
    """Of each strike: PARTS, and the kind. A strike before the one before was over has what came after it."""
    marks, steps, found = run.marks, run.steps, []
    for each in run.strikes:
        before = [row for row in steps if row["moment"] <= each.moment]
        old = {row["pid"] for row in before}
        again = next((row for row in steps if row["pid"] not in old and row["moment"] > each.moment), None)
        last = [row for row in steps if row["pid"] in old and (again is None or row["moment"] < again["moment"])]
        if again is None or not last:
            continue
        noticed = each.noticed
        if each.kind == "worker":
            states = [row["moment"] for row in marks if row["name"].startswith("controller: ")]
            noticed = next((moment for moment in states if moment > each.moment), each.moment)
        twice = max(row["nimg"] for row in last[-1:]) - (again["nimg"] - BATCH)
        values = (
            noticed - each.moment,
            again["moment"] - noticed,
            twice,
            twice / images_per_s,
            again["moment"] - each.moment + twice / images_per_s,
        )
        found.append({"kind": each.kind, **dict(zip(PARTS, values, strict=True))})
    return found


def pace(run: Run) -> float:
    """Images a second between the first and the last step."""
    first, last = run.steps[0], run.steps[-1]
    return (last["nimg"] - first["nimg"]) / (last["moment"] - first["moment"])


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"| victim | strikes | {' | '.join(PARTS)} |", "|---|---|" + "---|" * len(PARTS)]
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        values = [f"{statistics.median(row[part] for row in own):,.1f}" for part in PARTS] if own else ["-"] * 5
        lines.append(f"| {kind} | {len(own)} | {' | '.join(values)} |")
    return "\n".join(lines)


def measure(args: argparse.Namespace, root: Path) -> dict[str, tuple[str, list[float]]]:
    from edm_ray.cli import main as edm_ray

    edm_ray(["prepare", "digits", str(root / "data")])
    data = str(root / "data" / "train")

    def one(name: str, kimg: float, every: float | None = None) -> Run:
        folder = root / name
        folder.mkdir()
        more = ["--node-hours", str((every or 0.0) / 60), "--set"]
        if args.interval_kimg:
            more = ["--node-hours", "0", "--set", f"checkpoint_kimg={args.interval_kimg}"]
        command = Command(data, folder, kimg, more)
        run = make_run(command, folder, None if every is None else 60 * every, args.seed)
        print(f"{name}: {run.seconds:.0f} s, {len(run.strikes)} strikes", flush=True)
        return run

    kimg = args.kimg or kimg_for(args.minutes, one("calibration", CALIBRATION_KIMG))
    calm = one("calm", kimg)
    speed = pace(calm)
    print(f"{kimg:,.0f} kimg; calm: {speed:,.0f} images/s once it trains, {kimg * 1000 / calm.seconds:,.0f} in all")
    numbers: dict[str, tuple[str, list[float]]] = {"calm": ("s", [calm.seconds])}
    for every in args.every:
        struck = one(f"each-{every:g}", kimg, every)
        equal, rows = struck.result() == calm.result(), costs(struck, speed)
        print(f"\na SIGKILL each {every:g} min: goodput {calm.seconds / struck.seconds:.3f}, bits equal: {equal}\n")
        print(table(rows), flush=True)
        numbers[f"each {every:g} min: goodput"] = ("", [calm.seconds / struck.seconds])
        for kind in KINDS:
            for part in PARTS:
                if values := [float(row[part]) for row in rows if row["kind"] == kind]:
                    numbers[f"each {every:g} min, {kind}: {part}"] = ("", values)
        if not equal:
            raise SystemExit(f"{struck.folder} and {calm.folder} differ")
    return numbers


def kimg_for(minutes: float, calibration: Run) -> float:
    """So many that a calm run takes about so long, in whole ticks."""
    start = calibration.seconds - CALIBRATION_KIMG * 1000 / pace(calibration)
    return max(1, round(pace(calibration) * (60 * minutes - start) / 1000 / TICK_KIMG)) * TICK_KIMG


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every", type=float, nargs="+", default=[5.0, 1.0], help="minutes between strikes")
    parser.add_argument("--kimg", type=float, help="length of the runs, instead of --minutes")
    parser.add_argument("--interval-kimg", type=float, help="checkpoints each so many thousand images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a new folder that keeps runs, logs and marks")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # or what was started would stay
    with contextlib.ExitStack() as ends:
        root = args.out or Path(ends.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=args.out is None)
        numbers = measure(args, root)
    record("goodput", numbers, vars(args))


if __name__ == "__main__":
    main()
