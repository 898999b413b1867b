"""Measures on this machine what docs/scale.md extrapolates from, and writes benchmarks/scale.json.

    python benchmarks/scale_measure.py          a few minutes on two CPU cores; then: python benchmarks/scale.py

Every quantity is taken several times; the range (fastest, slowest) is kept, so that a busy machine widens it.
"""

from __future__ import annotations

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

OUT = Path(__file__).with_name("scale.json")


def seconds(work: Callable[[], object], repeats: int = 5) -> list[float]:
    """Fastest and slowest of ``repeats`` runs, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
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


def _ring(rank: int, rendezvous: str, out: str, count: int) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    large, small = torch.ones(count), torch.ones(1)
    times = {
        "allreduce_s": seconds(lambda: dist.all_reduce(large), 5),
        "allreduce_latency_s": seconds(lambda: [dist.all_reduce(small) for _ in range(50)], 5),
    }
    if rank == 0:
        times["allreduce_latency_s"] = [value / 50 for value in times["allreduce_latency_s"]]
        Path(out).write_text(json.dumps(times))
    dist.destroy_process_group()


def all_reduce(gradient_bytes: float) -> dict[str, list[float]]:
    """gloo between two processes of this machine: the software's cost, no network."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out.json"
        mp.spawn(_ring, args=(f"{folder}/rendezvous", out, int(gradient_bytes // 4)), nprocs=2)
        found = json.loads(Path(out).read_text())
    return found


def read() -> dict[str, list[float]]:
    """32x32 pictures decoded by one core, PNG and raw, from a set that `edm-ray prepare photographs` wrote."""
    from edm_ray.cli import main
    from edm_ray.data.manifest import open_dataset
    from edm_ray.data.reader import open_reader

    found = {}
    for encoding in ("png", "raw"):
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/{encoding}"
            code = main(
                ["prepare", "photographs", out, "--resolution", "32", "--crops", "8000", "--encoding", encoding]
            )
            assert code == 0
            dataset = open_dataset(out)
            rates = [dataset.rows / t for t in seconds(lambda dataset=dataset: open_reader(dataset), 3)]
            found[f"read_{encoding}_images_per_core_s"] = sorted(rates)
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

    from edm_ray.orchestration.session import session

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with session():
        nothing = ray.remote(num_cpus=0.1)(lambda: None)
        ray.get([nothing.remote() for _ in range(20)])
        there_and_back = seconds(lambda: ray.get(nothing.remote()), 30)
        many = seconds(lambda: ray.get([nothing.remote() for _ in range(300)]), 3)
    return {"task_s": there_and_back, "task_of_many_s": [value / 300 for value in many]}


def main() -> None:
    found = step()
    found |= all_reduce(found["gradient_bytes"][0])
    found |= read()
    found |= evaluation()
    found |= tasks()
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), shared with other work; no GPU",
        "torch": torch.__version__,
    }
    OUT.write_text(json.dumps({"about": about, "measured": found}, indent=1) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
