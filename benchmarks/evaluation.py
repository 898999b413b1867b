"""From images to FID: edm_ray beside what users would take instead, and the FID algebra by itself. CPU, one run.

    python benchmarks/evaluation.py --parts algebra,images,inception,actors,precision,simulation [--write]

Contenders take turns, each in a process of its own, so that a busy machine is busy for all alike. Medians, with the
least and the greatest in brackets. CPU seconds (of all processes) say more than wall seconds on a shared machine.
``--write`` puts the tables into docs/evaluation.md. pytorch-fid and clean-fid: see requirements.txt; without them they
are left out.
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
from pathlib import Path

import evaluation_contenders as contenders
import evaluation_pool as pool
import evaluation_precision as precision
import evaluation_simulation as simulation
import numpy as np
import torch

from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision
from edm_ray.evaluation.fid import FidReference
from edm_ray.evaluation.moments import Moments

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"
MARKS = "<!-- made by benchmarks/evaluation.py, {0}: begin -->", "<!-- {0}: end -->"
D = 2048


def spread(values: list[float], digits: int = 2) -> str:
    """Median (least to greatest)."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


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


def end_to_end(count: int, repeats: int, extractor: str, names: tuple[str, ...]) -> str:
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
                command = [sys.executable, contenders.__file__, name, str(folder), extractor]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
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
    return "\n".join(lines)


def timed(call: Callable[[], float]) -> tuple[float, float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    value = call()
    return time.perf_counter() - started, time.process_time() - cpu, float(value)


def algebra(repeats: int) -> tuple[str, dict[str, float]]:
    """FID from two sets of moments of 2,048 features; also what the simulation needs."""
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
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name in list(calls) if turn % 2 == 0 else list(calls)[::-1]:
            times[name].append(timed(calls[name]))
            print(name, times[name][-1], load(), flush=True)
    lines = ["| | wall s | CPU s | value |", "|---|---|---|---|"]
    for name, got in times.items():
        value = "" if "once" in name or "moments" in name else f"{got[0][2]:.9f}"
        lines.append(f"| {name} | {spread([g[0] for g in got])} | {spread([g[1] for g in got])} | {value} |")
    cpu = {name: statistics.median(g[1] for g in got) for name, got in times.items()}
    ratio = cpu["edm_ray, each FID"] / cpu["torch-fidelity"]
    lines.append(f"\nCPU time of one FID relative to torch-fidelity's: **{ratio:.2f}**.")
    return "\n".join(lines), cpu


def put(title: str, text: str) -> None:
    """Into docs/evaluation.md, between its marks."""
    begin, end = (mark.format(title) for mark in MARKS)
    content = DOCS.read_text()
    head, rest = content.split(begin, 1)
    DOCS.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def images_part(count: int, repeats: int) -> str:
    table = end_to_end(count, repeats, "projection", contenders.NAMES)
    twice = end_to_end(2 * count, 1, "projection", ("edm_ray",)).splitlines()[-1].split("|")
    return (
        f"{table}\n\n{count:,} images of 32x32, {repeats} turns; peak memory is of all processes together. With "
        f"{2 * count:,} images edm_ray needs{twice[4]}MB: memory does not grow with n; the others hold all features. "
        f"{machine()}."
    )


def inception_part(count: int, repeats: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        sys.path.insert(0, str(DOCS.parents[1]))  # the tests know how to make weights without a download
        from tests.evaluation.conftest import random_inception_state

        images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
        torch.save(random_inception_state(images), weights)
        table = end_to_end(count, repeats, str(weights), ("edm_ray", "torch-fidelity"))
    return f"{table}\n\n{count} images, {repeats} turns; {machine()}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="algebra,images,simulation", help="which tables, with commas between")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inception", type=int, default=200, help="images for the Inception network")
    parser.add_argument("--chunks", type=int, default=40, help="actors: chunks a turn")
    parser.add_argument("--model", help="precision: a trained model directory, e.g. the demo's")
    parser.add_argument("--reference", help="precision: its reference")
    parser.add_argument("--precision-images", default="bf16:5000,fp16:1000")
    parser.add_argument("--churn", type=float, default=0.0, help="precision: S_churn")
    parser.add_argument("--write", action="store_true", help="tables into docs/evaluation.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for title in args.parts.split(","):
        if title == "algebra":
            table, cpu = algebra(args.repeats)
            text = f"{table}\n\n{args.repeats} turns; {machine()}."
            simulation.COSTS_FILE.write_text(json.dumps(simulation.measured(cpu), indent=1) + "\n")
        elif title == "images":
            text = images_part(args.images, args.repeats)
        elif title == "inception":
            text = inception_part(args.inception, min(2, args.repeats))
        elif title == "actors":
            text = f"{pool.measure(args.chunks, min(2, args.repeats))} {machine()}."
        elif title == "precision":
            counts = {name: int(n) for name, n in (part.split(":") for part in args.precision_images.split(","))}
            text = precision.measure(args.model, args.reference, counts, args.churn)
        elif title == "simulation":
            text = simulation.table()
        else:
            parser.error(f"--parts {title}: unknown")
        print(f"\n## {title}\n{text}", flush=True)
        if args.write:
            put(title, text)


if __name__ == "__main__":
    main()
