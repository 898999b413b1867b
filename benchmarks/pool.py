"""Images a second of a pool of 1 and of 2 samplers on Ray. More actors are simulated: `research/scale/actors.py`.

    python -m benchmarks.pool [--chunks 40] [--repeats 2]

CPU; the digits model with a network of its own size, whose weights do not matter here. Time is from the first chunk
that is done to the last, so that starting processes is left out (it is said beside).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch

from benchmarks.results import record
from edm_ray.cli import main as edm_ray
from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed.executor import Ray
from edm_ray.distributed.pool import start_pools
from edm_ray.distributed.session import session
from edm_ray.evaluation.chunks import chunks_for
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.evaluate import EvaluationSpec
from edm_ray.models import open_model

SEEDS = 1 << 20
# Name, samplers, chunks that each has in hand.
CREWS = (("1 actor", 1, 1), ("1 actor, two chunks in hand", 1, 2), ("2 actors", 2, 1))


def prepare(folder: str) -> tuple[str, str]:
    """A model and a reference directory."""
    for command in (
        f"prepare digits {folder}/data",
        f"train --data {folder}/data/train --out {folder}/run --preset digits --no-ray --set total_kimg=0.128",
        f"reference --data {folder}/data/train --out {folder}/reference --extractor digits",
    ):
        if edm_ray(command.split()):
            raise SystemExit(f"edm-ray {command}: failed")
    return f"{folder}/run/model", f"{folder}/reference"


def measure(chunk_count: int, repeats: int) -> tuple[str, dict[str, tuple[str, list[float]]]]:
    """Table and numbers of images a second; every turn samples other seeds."""
    os.environ["EDM_RAY_LOCAL_CPUS"] = "2"
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in CREWS}
    dispatch: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model_dir, reference_dir = prepare(folder)
        model, (reference, extractor) = open_model(model_dir), open_reference(reference_dir)
        settings = sampler().effective(model.denoiser())
        with session():
            for turn in range(repeats):
                for name, samplers, in_hand in CREWS if turn % 2 == 0 else CREWS[::-1]:
                    spec = EvaluationSpec(
                        model=model, extractors=(extractor,), store=str(Path(folder) / f"{name} {turn}")
                    )
                    made = spec.generator(reference.moments.extractor, "cpu")
                    chunks = chunks_for(made, settings, SEEDS, 100 * (chunk_count + samplers * in_hand))
                    started = time.monotonic()
                    [pool] = start_pools(Ray(workers=samplers), [spec.recipe()], in_hand=in_hand)
                    while pool.status()["alive"] < samplers:
                        ray.get(pool.dispatchers.begin.remote())
                        time.sleep(0.05)
                    ready, ends = time.monotonic(), []
                    for _ in pool.make([(chunk,) for chunk in chunks]):
                        ends.append(time.monotonic())
                    stored = time.monotonic()
                    ray.get([pool.ensure(chunk) for chunk in chunks])
                    dispatch.append((time.monotonic() - stored) / len(chunks))
                    pool.stop()
                    # The first chunks warm up; the last ones may find idle samplers.
                    warm = samplers * in_hand
                    speed = 100 * (len(ends) - warm) / (ends[-1] - ends[warm - 1])
                    rows[name].append((speed, ready - started))
                    print(name, rows[name][-1], flush=True)
    one = statistics.median(speed for speed, _ in rows["1 actor"])
    lines = ["| | images/s | relative to 1 actor | until ready, s |", "|---|---|---|---|"]
    for name, got in rows.items():
        speeds, starts = [speed for speed, _ in got], [start for _, start in got]
        spread = f" ({min(speeds):.0f} to {max(speeds):.0f})" if len(speeds) > 1 else ""
        relative = statistics.median(speeds) / one
        lines.append(
            f"| {name} | {statistics.median(speeds):.0f}{spread} | {relative:.2f} | {statistics.median(starts):.1f} |"
        )
    each = 1000 * statistics.median(dispatch)
    lines.append(f"\nThe dispatcher answers for {1000 / each:.0f} chunks a second that are there ({each:.1f} ms each).")
    lines.append(f"{chunk_count} chunks of 100 images each, {settings.nfe} network calls an image.")
    numbers = {f"{name}: images/s": ("images/s", [speed for speed, _ in got]) for name, got in rows.items()}
    numbers |= {f"{name}: until ready": ("s", [start for _, start in got]) for name, got in rows.items()}
    return "\n".join(lines), {**numbers, "a chunk that is there": ("ms", [1000 * seconds for seconds in dispatch])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=40, help="chunks a turn")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table, numbers = measure(args.chunks, args.repeats)
    print(table)
    record("pool", numbers, vars(args))


if __name__ == "__main__":
    main()
