"""Measures on this machine what README.md extrapolates from, and writes measured.json beside this file.

    python -m research.scale.measure          a few minutes on two CPU cores
    python -m research.scale.measure ddp      one part of it (step, ddp, read, evaluation, tasks)

Every quantity is taken several times; the range (fastest, slowest) is kept, so that a busy machine widens it. Then copy
what `edm_ray.config.published.scaling_costs` has of it, and run `python -m research.scale.tables`. --out FILE writes
elsewhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from research.scale import two_processes
from research.scale.model import MEASURED_FILE


def seconds(
    work: Callable[[], object], repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Fastest and slowest of ``repeats`` runs, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = clock()
        work()
        times.append(clock() - started)
    return [min(times), max(times)]


def step() -> dict[str, list[float]]:
    """A training step without a network worth mentioning (its host cost), and the CIFAR-10 network, 1 thread."""
    from edm_ray.config.presets import tiny
    from edm_ray.config.recipes import CIFAR10, config_f
    from edm_ray.config.shape import DataShape
    from edm_ray.networks import build_network
    from edm_ray.networks.cost import network_cost

    torch.set_num_threads(1)
    found = {}
    shape = DataShape(resolution=32, channels=3, num_classes=10)
    large = config_f(shape, CIFAR10, "vp").denoiser
    for name, network_config in (("host_step_s", tiny(shape).denoiser.network), ("cifar10_image_s", large.network)):
        network = build_network(network_config)
        optimizer = torch.optim.Adam(network.parameters())
        size, channels = network_config.img_resolution, network_config.img_channels
        x = torch.randn(1, channels, size, size)
        labels = torch.zeros(1, network_config.label_dim) if network_config.label_dim else None
        augment = torch.zeros(1, network_config.augment_dim) if network_config.augment_dim else None

        def one(network=network, optimizer=optimizer, x=x, labels=labels, augment=augment) -> None:
            optimizer.zero_grad(set_to_none=True)
            network(x, torch.zeros(1), labels, augment).square().mean().backward()
            optimizer.step()

        found[name] = seconds(one, 10 if name == "host_step_s" else 4)
    cost = network_cost(large)
    flops = 2 * 3 * cost.forward_macs  # a backward pass is two forward ones
    found["cpu_gflops"] = sorted(flops / t / 1e9 for t in found["cifar10_image_s"])
    found["gradient_bytes"] = [cost.parameters * 4.0] * 2
    return found


def read() -> dict[str, list[float]]:
    """32x32 pictures decoded by one core, PNG and raw, from a set that `edm-ray prepare photographs` wrote.

    Seconds of computing, not of the clock: shards are decoded in several threads. The set is small enough to be decoded
    each time, and not taken from the node's cache.
    """
    from edm_ray.cli import main
    from edm_ray.data.manifest import open_dataset
    from edm_ray.data.reader import IN_MEMORY_BYTES, open_reader

    found = {}
    for encoding in ("png", "raw"):
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/{encoding}"
            code = main(["prepare", "photographs", out, "--resolution", "32", "--num", "5000", "--encoding", encoding])
            assert code == 0
            dataset = open_dataset(out)
            assert dataset.rows * 3 * 32 * 32 <= IN_MEMORY_BYTES
            taken = seconds(lambda dataset=dataset: open_reader(dataset).close(), 4, time.process_time)
            found[f"read_{encoding}_images_per_core_s"] = sorted(dataset.rows / t for t in taken)
    return found


def evaluation() -> dict[str, list[float]]:
    """Sums of a chunk of 500 images and one FID, both with Inception's 2,048 features."""
    from edm_ray.evaluation.fid import FidReference
    from edm_ray.evaluation.moments import Moments

    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1 << 15, (3000, 2048)).astype(np.int32)
    moments = Moments.of(rows, "extractor", 14)
    reference = FidReference(moments)
    return {
        "chunk_sums_s": seconds(lambda: Moments.of(rows[:500], "extractor", 14), 3),
        "fid_s": seconds(lambda: reference.distance(Moments.of(rows[:2500], "extractor", 14)), 2),
    }


def tasks() -> dict[str, list[float]]:
    """A Ray task there and back, and many at once."""
    import ray

    from edm_ray.distributed.session import session

    with session():
        nothing = ray.remote(num_cpus=0.1)(lambda: None)
        ray.get([nothing.remote() for _ in range(20)])
        there_and_back = seconds(lambda: ray.get(nothing.remote()), 30)
        many = seconds(lambda: ray.get([nothing.remote() for _ in range(300)]), 3)
    return {"task_s": there_and_back, "task_of_many_s": [value / 300 for value in many]}


PARTS: dict[str, Callable[[], dict[str, list[float]]]] = {
    "step": step,
    "ddp": two_processes.measure,
    "read": read,
    "evaluation": evaluation,
    "tasks": tasks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=MEASURED_FILE)
    args = parser.parse_args()
    names = args.parts or list(PARTS)
    if unknown := set(names) - PARTS.keys():
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    content = json.loads(args.out.read_text()) if args.out.exists() else {"about": {}, "measured": {}}
    for name in names:
        content["measured"] |= PARTS[name]()
        content["about"].setdefault("dates", {})[name] = datetime.date.today().isoformat()
    content["about"] |= {
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), shared with other work; no GPU",
        "torch": torch.__version__,
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
