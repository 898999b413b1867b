"""From images to FID: edm_ray beside what users would take instead, and the FID algebra by itself. CPU, one run.

    python -m benchmarks.evaluation [--parts algebra,images,inception] [--images 10000] [--repeats 3]

Contenders take turns, each in a process of its own, so that a busy machine is busy for all alike. Medians, with the
least and the greatest in brackets. CPU seconds (of all processes) say more than wall seconds on a shared machine.
pytorch-fid and clean-fid: see requirements.txt; without them they are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import evaluation_contenders as contenders
from benchmarks.results import record, spread
from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision
from edm_ray.evaluation.fid import FidReference
from edm_ray.evaluation.moments import Moments

ROOT = Path(__file__).parents[1]
D = 2048


Numbers = dict[str, tuple[str, list[float]]]


@dataclass(frozen=True)
class Run:
    """One call: seconds by the clock and of the processor, and what it gave."""

    wall: float
    cpu: float
    value: float


def load() -> str:
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def machine() -> str:
    text = f"{os.cpu_count()} cores ({platform.machine()}), one thread each process, torch {torch.__version__}, NumPy "
    text += f"{np.__version__}, {load()} at the end"
    if os.getloadavg()[0] <= (os.cpu_count() or 1) + 0.5:
        return text
    return text + (
        ". **The machine was shared with other work**, so wall times are longer than on a quiet one, for all alike; "
        "compare the CPU columns"
    )


def end_to_end(count: int, repeats: int, extractor: str, names: tuple[str, ...]) -> tuple[str, Numbers]:
    """Table and numbers of every contender that is installed."""
    runs: dict[str, list[dict]] = {name: [] for name in names}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as root:
        base = Path(root) / "base"
        base.mkdir()
        contenders.prepare(base, count, extractor)
        for turn in range(repeats):
            for name in names if turn % 2 == 0 else names[::-1]:
                if name in reasons:
                    continue
                folder = Path(root) / "run"
                shutil.copytree(base, folder)
                command = [sys.executable, "-m", contenders.__name__, name, str(folder), extractor]
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    cwd=ROOT,
                    check=False,
                )
                shutil.rmtree(folder)
                if done.returncode:
                    reasons[name] = (done.stderr.strip().splitlines() or ["no message"])[-1][:100]
                    continue
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, runs[name][-1], load(), flush=True)
    lines = ["| | wall s | CPU s | peak MB | MB written | FID |", "|---|---|---|---|---|---|"]
    for name in names:
        if name in reasons:
            missing = "ModuleNotFoundError" in reasons[name]
            lines.append(f"| {name} | {'not installed' if missing else reasons[name]} | | | | |")
            continue
        got = runs[name]
        wall, cpu = spread([r["wall"] for r in got]), spread([r["cpu"] for r in got])
        peak, wrote = max(r["peak"] for r in got) / 1e6, got[0]["bytes"] / 1e6
        lines.append(f"| {name} | {wall} | {cpu} | {peak:.0f} | {wrote:.1f} | {got[0]['fid']:.6f} |")
    units = {"wall": "s", "cpu": "CPU s", "peak": "bytes"}
    numbers = {
        f"{name}: {column}": (unit, [float(run[column]) for run in got])
        for name, got in runs.items()
        for column, unit in units.items()
        if got
    }
    return "\n".join(lines), numbers


def timed(call: Callable[[], float]) -> Run:
    started, cpu = time.perf_counter(), time.process_time()
    value = call()
    return Run(time.perf_counter() - started, time.process_time() - cpu, float(value))


def algebra(repeats: int) -> dict[str, list[Run]]:
    """FID from two sets of moments of 2,048 features, and its parts; name -> runs."""
    from scipy.linalg import sqrtm

    ensure_torchvision()
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(D, D)) * (np.arange(1, D + 1) ** -0.5)[:, None] / D**0.5
    raw = [np.maximum(rng.normal(size=(5000, D)) @ mix * scale + 0.3, 0.0) for scale in (1.0, 1.1)]
    rows = [np.rint(values * 2.0**14).astype(np.int32) for values in raw]
    a, b = (Moments.of(features, "x", 14) for features in rows)
    stats = [{"mu": m.mean, "sigma": m.covariance} for m in (a, b)]
    gap, traces = a.mean - b.mean, float(np.trace(stats[0]["sigma"]) + np.trace(stats[1]["sigma"]))
    reference = FidReference(b)
    calls = {
        "edm_ray, each FID": lambda: reference.distance(a),
        "edm_ray, the reference, once": lambda: FidReference(b).trace,
        "torch-fidelity": lambda: fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"],
        "scipy sqrtm": lambda: gap @ gap + traces - 2 * np.trace(sqrtm(stats[0]["sigma"] @ stats[1]["sigma"])).real,
        "moments of 500 images": lambda: Moments.of(rows[0][:500], "x", 14).n,
    }
    times: dict[str, list[Run]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name in list(calls) if turn % 2 == 0 else list(calls)[::-1]:
            times[name].append(timed(calls[name]))
            print(name, times[name][-1], load(), flush=True)
    return times


def algebra_part(repeats: int) -> tuple[str, Numbers]:
    lines, numbers = ["| | wall s | CPU s | value |", "|---|---|---|---|"], {}
    times = algebra(repeats)
    for name, got in times.items():
        value = "" if "once" in name or "moments" in name else f"{got[0].value:.9f}"
        wall, cpu = [run.wall for run in got], [run.cpu for run in got]
        lines.append(f"| {name} | {spread(wall)} | {spread(cpu)} | {value} |")
        numbers |= {f"{name}: wall": ("s", wall), f"{name}: cpu": ("CPU s", cpu)}
    one, other = (statistics.median(r.cpu for r in times[name]) for name in ("edm_ray, each FID", "torch-fidelity"))
    lines.append(f"\nCPU time of one FID relative to torch-fidelity's: **{one / other:.2f}**.")
    return "\n".join([*lines, f"\n{repeats} turns; {machine()}."]), numbers


def images_part(count: int, repeats: int) -> tuple[str, Numbers]:
    table, numbers = end_to_end(count, repeats, "projection", contenders.NAMES)
    _, twice = end_to_end(2 * count, 1, "projection", ("edm_ray",))
    peak = twice["edm_ray: peak"][1][0] / 1e6
    text = (
        f"{table}\n\n{count:,} images of 32x32, {repeats} turns; peak memory is of all processes together. With "
        f"{2 * count:,} images edm_ray needs {peak:.0f} MB: memory does not grow with n; the others hold all features. "
        f"{machine()}."
    )
    return text, {**numbers, "edm_ray, twice the images: peak": twice["edm_ray: peak"]}


def inception_part(count: int, repeats: int) -> tuple[str, Numbers]:
    # The tests know how to make weights without a download.
    from tests.evaluation.conftest import random_inception_state

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
        torch.save(random_inception_state(images), weights)
        table, numbers = end_to_end(count, repeats, str(weights), ("edm_ray", "torch-fidelity"))
    return f"{table}\n\n{count} images, {repeats} turns; {machine()}.", numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="algebra,images", help="which tables, with commas between")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inception", type=int, default=200, help="images for the Inception network")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], tuple[str, Numbers]]] = {
        "algebra": lambda: algebra_part(args.repeats),
        "images": lambda: images_part(args.images, args.repeats),
        "inception": lambda: inception_part(args.inception, min(2, args.repeats)),
    }
    titles = args.parts.split(",")
    if unknown := [title for title in titles if title not in parts]:
        parser.error(f"--parts {','.join(unknown)}: unknown; there are {', '.join(parts)}")
    for title in titles:
        text, numbers = parts[title]()
        print(f"\n## {title}\n{text}", flush=True)
        record(f"evaluation, {title}", numbers, vars(args))


if __name__ == "__main__":
    main()
