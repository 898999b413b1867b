"""Is this checkout slower than that one? Two checkouts take turns at what a user does, by the command line alone.

    python -m benchmarks.before_after BEFORE AFTER [--rounds 5] [--only help "train help" ...] [--ray]

BEFORE and AFTER are folders that hold `edm_ray`; both run with this Python and one thread. They take turns within each
round, and every second round backwards, so that a busy machine is busy for both. Each makes a data set, a model, and a
reference of its own first. What has a start in it is measured twice, with less and with more work, in the same turn;
the difference is the work's. The ratio is after / before, round by round.

    help, train help    `edm-ray --help`, `edm-ray train --help`
    import              `import edm_ray`; what that loads differs: a face that is lazy loads nothing
    first step          from the command to the first row of metrics, in one process
    step                of `edm-ray train --no-ray`, digits, by its own images/s
    image               of `edm-ray generate`, 18 steps
    chunk, trial        with --ray: 100 images and their features (`evaluate`), a setting (`sweep`), one worker
    local chunk, trial  the same with --workers 0, of the checkouts that can
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import commit_of, record, spread

COMMAND = "from edm_ray.cli import main; raise SystemExit(main())"
LIMIT_S = 600
SPACE = """name: before-after
sampler: {num_steps: 4}
search:
  churn_fraction: {low: 0.01, high: 1.0}
  s_noise: {low: 0.99, high: 1.01}
"""
SWEEP = "--strategy random --chunk-size 50 --initial-chunks 1 --max-chunks 1 --confirm-chunks 1 --num-line 0 --grid 10"
STEPS, BATCH = 8, 128


@dataclass(frozen=True)
class Side:
    """One checkout and the folder that its files go to."""

    name: str
    checkout: Path
    folder: Path

    def environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        return {**os.environ, "EDM_RAY_LOCAL_CPUS": "2", **own}

    def python(self, code: str, *arguments: str) -> float:
        """Wall seconds. Raises SystemExit with the end of what it said when it failed."""
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        if done.returncode:
            raise SystemExit(f"{self.name}: edm-ray {' '.join(arguments)}: {(done.stdout + done.stderr)[-2000:]}")
        return time.perf_counter() - began

    def edm_ray(self, command: str, *more: str) -> float:
        return self.python(COMMAND, *command.split(), *more)

    def prepare(self) -> None:
        self.folder.mkdir()
        (self.folder / "space.yaml").write_text(SPACE)
        self.edm_ray("prepare digits data")
        self.edm_ray("train --data data/train --out run --preset digits --no-ray --set total_kimg=0.128")
        self.edm_ray("reference --data data/train --out reference --extractor digits")

    def fresh(self, name: str) -> str:
        """A folder that nothing has written to."""
        return f"{name}-{len(list(self.folder.iterdir()))}"


Measure = Callable[[Side], float]
Found = dict[str, dict[str, list[float]]]


def first_step(side: Side) -> float:
    """Seconds from the command to its first row of metrics."""
    out = side.fresh("first")
    settings = f"total_kimg={4 * BATCH / 1000} tick_kimg={BATCH / 1000} checkpoint_kimg=1000"
    command = f"train --data data/train --out {out} --preset digits --no-ray --set {settings}".split()
    metrics = side.folder / out / "metrics.jsonl"
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command],
        env=side.environment(),
        cwd=side.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not metrics.exists() or not metrics.stat().st_size:
        if process.poll() not in (None, 0) or time.perf_counter() - began > LIMIT_S:
            process.kill()
            raise SystemExit(f"{side.name}: no first step of edm-ray {' '.join(command)}")
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    process.wait(LIMIT_S)
    return seconds


def step(side: Side) -> float:
    """Milliseconds of a step: the median of its ticks, the first apart."""
    out, tick = side.fresh("steps"), STEPS * BATCH / 1000
    settings = f"total_kimg={6 * tick} tick_kimg={tick} checkpoint_kimg=1000 batch_size={BATCH}"
    side.edm_ray(f"train --data data/train --out {out} --preset digits --no-ray --set {settings}")
    rows = [json.loads(line) for line in (side.folder / out / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(1000 * BATCH / row["images_per_s"] for row in rows[1:])


def difference(command: Callable[[Side, int], str], few: int, many: int, unit: float = 1000.0) -> Measure:
    """The time of one more: of runs with ``few`` and with ``many``."""

    def measure(side: Side) -> float:
        short, long = (side.edm_ray(command(side, count)) for count in (few, many))
        return unit * (long - short) / (many - few)

    return measure


def generate(side: Side, count: int) -> str:
    return f"generate --model run/model --num {count} --out {side.fresh('images')}.png"


def evaluate(workers: int) -> Callable[[Side, int], str]:
    """``count`` chunks of 100 images."""

    def command(side: Side, count: int) -> str:
        where = f"--out {side.fresh('evaluation')} --workers {workers}"
        return f"evaluate --model run/model --reference reference --num {100 * count} {where}"

    return command


def sweep(workers: int) -> Callable[[Side, int], str]:
    def command(side: Side, count: int) -> str:
        where = f"--space space.yaml --out {side.fresh('sweep')} --workers {workers}"
        return f"sweep --model run/model --reference reference {where} {SWEEP} --num-global {count}"

    return command


def cases(ray: bool) -> dict[str, tuple[str, Measure]]:
    """Name -> (unit, how it is measured)."""
    found: dict[str, tuple[str, Measure]] = {
        "help": ("s", lambda side: side.edm_ray("--help")),
        "train help": ("s", lambda side: side.edm_ray("train --help")),
        "import": ("s", lambda side: side.python("import edm_ray")),
        "first step": ("s", first_step),
        "step": ("ms", step),
        "image": ("ms", difference(generate, 50, 350)),
        "local chunk": ("ms", difference(evaluate(0), 2, 8)),
        "local trial": ("ms", difference(sweep(0), 4, 20)),
    }
    if ray:
        found["chunk"] = ("ms", difference(evaluate(1), 2, 8))
        found["trial"] = ("ms", difference(sweep(1), 4, 20))
    return found


def has_a_local_form(side: Side) -> bool:
    """Whether its `evaluate` and `sweep` take --workers 0. (An import would ask an installed edm_ray too.)"""
    return (side.checkout / "edm_ray" / "tasks").is_dir()


def compare(
    sides: list[Side], wanted: dict[str, tuple[str, Measure]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Case -> side -> a value a round."""
    local = {side.name for side in sides if has_a_local_form(side)}
    found: Found = {name: {} for name in wanted}
    for turn in range(rounds):
        for name, (unit, measure) in wanted.items():
            for side in sides if turn % 2 == 0 else sides[::-1]:
                if name.startswith("local") and side.name not in local:
                    continue
                found[name].setdefault(side.name, []).append(measure(side))
                print(f"round {turn + 1}, {name}, {side.name}: {found[name][side.name][-1]:.3f} {unit}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(cases(True)), help="these cases")
    parser.add_argument("--ray", action="store_true", help="chunks and trials under Ray too")
    args = parser.parse_args()
    wanted = {
        name: case
        for name, case in cases(args.ray or bool(args.only)).items()
        if name in (args.only or cases(args.ray))
    }
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Side(name, checkout.resolve(), Path(folder) / name)
            for name, checkout in (("before", args.before), ("after", args.after))
        ]
        for side in sides:
            side.prepare()
        found = compare(sides, wanted, args.rounds)
    print("\n| what | unit | before | after | after / before |\n|---|---|---|---|---|")
    numbers: dict[str, tuple[str, list[float]]] = {}
    for name, values in found.items():
        unit = wanted[name][0]
        shown = [spread(values[side.name], 3) if values.get(side.name) else "-" for side in sides]
        numbers |= {f"{name}, {side}": (unit, each) for side, each in values.items()}
        ratios = [b / a for a, b in zip(values.get("before", []), values.get("after", []), strict=False)]
        if ratios:
            numbers[f"{name}, after / before"] = ("", ratios)
        print(f"| {name} | {unit} | {shown[0]} | {shown[1]} | {spread(ratios, 3) if ratios else '-'} |")
    commits = {side.name: str(commit_of(side.checkout)["commit"])[:12] for side in sides}
    record("before_after", numbers, {"rounds": args.rounds, **commits})


if __name__ == "__main__":
    main()
