"""A training step of CIFAR-10's network: images a second, and the share of the card's own speed."""

from __future__ import annotations

import functools
from typing import Any

import torch

from benchmarks.gpu.bench import SHAPE, Bench, spread
from benchmarks.gpu.forms import FORMS, form
from edm_ray.config.training import TrainingConfig
from edm_ray.networks.cost import network_cost
from edm_ray.training.cost import memory_gib
from edm_ray.training.device import Place
from edm_ray.training.state import TrainingState
from edm_ray.training.step import TrainingStep

BACKWARD = 3
"""A forward and a backward pass are three times the forward pass."""


class Pictures:
    """Fixed random pixels, pinned once: reading is another benchmark's."""

    skipped = None

    def __init__(self, batch: int, pinned: bool) -> None:
        self.pixels = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8)
        self.labels = torch.randint(SHAPE.num_classes, (batch,))
        if pinned:
            self.pixels, self.labels = self.pixels.pin_memory(), self.labels.pin_memory()

    def at(self, positions: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pixels, self.labels


def new_step(bench: Bench, config: TrainingConfig) -> TrainingStep:
    return TrainingStep(config, Place(device=str(bench.device)), TrainingState(config, bench.device))


def measure(bench: Bench, name: str, precision: str, batch: int, *settings: str, part: str = "training") -> None:
    """One row. name: of `FORMS`."""
    bench.attempt(f"{part} {name} {precision} {batch}", lambda: _measure(bench, name, precision, batch, settings, part))


def _measure(bench: Bench, name: str, precision: str, batch: int, settings: tuple[str, ...], part: str) -> None:
    batch = 2 if bench.toy else batch
    graph = f"graph={str(name == 'recorded').lower()}"
    config = bench.config(f"precision={precision}", f"batch_size={batch}", graph, *settings)
    cost = network_cost(config.denoiser, bench.device.type)
    with form(name), bench.peak() as peak:
        step, pictures = new_step(bench, config), Pictures(batch, bench.device.type == "cuda")
        times = spread(bench.time(functools.partial(step.take, pictures), rounds=5))
        used = peak()
    loss = step.numbers()["loss"]
    floor = bench.floor_s(2 * BACKWARD * cost.forward_macs * batch, precision)
    bench.row(
        part, form=name, precision=precision, batch=batch, settings=" ".join(settings), ms=1e3 * times["median"],
        ms_least=1e3 * times["least"], ms_most=1e3 * times["most"], images_per_s=batch / times["median"],
        share_of_floor=floor / times["median"], peak_gib=used,
        planned_gib=memory_gib(cost, batch, precision).value, loss=loss,
    )  # fmt: skip


def table(bench: Bench) -> None:
    """The product's form first."""
    for precision in ("bf16", "tf32", "fp32"):
        if bench.device.type == "cpu" and precision == "tf32":
            continue
        for name in reversed(FORMS) if precision == "bf16" else ("recorded", "eager"):
            measure(bench, name, precision, 128)


def batches(bench: Bench) -> None:
    for batch in (512, 256, 64):
        measure(bench, "recorded", "bf16", batch)


def choices(bench: Bench) -> None:
    """What determinism costs, and what torch.compile adds to the rest."""
    measure(bench, "recorded", "bf16", 128, "deterministic=false", part="choices")
    measure(bench, "channels_last", "bf16", 128, "deterministic=false", part="choices")


def compiled(bench: Bench) -> None:
    """torch.compile in place of our kernels."""
    measure(bench, "fused", "bf16", 128, "compile=true", part="compiled")


def breakdown(bench: Bench) -> None:
    """Where a step's time on the device goes."""
    batch = 2 if bench.toy else 128
    config = bench.config("precision=bf16", f"batch_size={batch}")
    step, pictures = new_step(bench, config), Pictures(batch, bench.device.type == "cuda")
    profile(bench, "training step", functools.partial(step.take, pictures), 3)


def profile(bench: Bench, what: str, work: Any, calls: int) -> None:
    """Kernels by their time on the device; all of them in kernels-*.txt."""
    for _ in range(3):
        work()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(calls):
            work()
        bench.wait()
    cuda = bench.device.type == "cuda"
    kernels = [e for e in profiler.key_averages() if not cuda or e.device_type == torch.autograd.DeviceType.CUDA]
    spent = [(e.self_device_time_total if cuda else e.self_cpu_time_total, e.count, e.key) for e in kernels]
    spent.sort(reverse=True)
    total = sum(us for us, _, _ in spent)
    lines = [
        f"{us / calls:10.1f} us {count // calls:5d} x  {100 * us / total:5.1f} %  {key}" for us, count, key in spent
    ]
    (bench.out / f"kernels-{what.replace(' ', '-')}.txt").write_text("\n".join(lines) + "\n")
    bench.row(
        "breakdown", what=what, device_ms=total / calls / 1e3, kernels=sum(count for _, count, _ in spent) // calls
    )
    print("\n".join(line[:150] for line in lines[:22]), flush=True)
