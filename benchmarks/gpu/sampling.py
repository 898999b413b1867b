"""Images from CIFAR-10's network: images a second at 35 and at 8 evaluations."""

from __future__ import annotations

import functools

import torch

from benchmarks.gpu.bench import Bench, spread
from benchmarks.gpu.forms import FORMS, form, moved
from benchmarks.gpu.training import profile
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.generation.generate import generate
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.networks.build import build_denoiser, on_device
from edm_ray.networks.cost import network_cost

SAMPLERS = {35: sampler(num_steps=18), 8: sampler(num_steps=8, solver="dpmpp_2m")}


def denoiser_of(bench: Bench, name: str) -> ModelDenoiser:
    config = bench.config().denoiser
    place = moved if name == "eager" else on_device
    module = place(build_denoiser(config), bench.device).eval().requires_grad_(False)
    denoiser = ModelDenoiser(module, config.network)
    return denoiser.record() if name == "recorded" else denoiser


def measure(bench: Bench, name: str, precision: str, nfe: int, batch: int) -> None:
    bench.attempt(f"sampling {name} {precision} {batch}", lambda: _measure(bench, name, precision, nfe, batch))


def _measure(bench: Bench, name: str, precision: str, nfe: int, batch: int) -> None:
    batch = 2 if bench.toy else batch
    chosen: Sampler = SAMPLERS[nfe]
    macs = network_cost(bench.config().denoiser).forward_macs
    with form(name), bench.peak() as peak:
        denoiser, seeds = denoiser_of(bench, name), torch.arange(batch)
        times = spread(
            bench.time(functools.partial(generate, denoiser, seeds, chosen, "random", batch, precision), rounds=3)
        )
        used = peak()
    floor = bench.floor_s(2 * macs * batch * chosen.nfe, precision)
    bench.row(
        "sampling", form=name, precision=precision, nfe=chosen.nfe, batch=batch,
        ms_an_evaluation=1e3 * times["median"] / nfe, images_per_s=batch / times["median"],
        share_of_floor=floor / times["median"], peak_gib=used,
    )  # fmt: skip


def table(bench: Bench) -> None:
    for name in reversed(FORMS):
        measure(bench, name, "bf16", 8, 256)
    for name in ("recorded", "eager"):
        measure(bench, name, "fp32", 8, 256)


def batches(bench: Bench) -> None:
    for batch in (50, 100, 500, 1024, 2048):
        measure(bench, "recorded", "bf16", 8, batch)
    measure(bench, "recorded", "bf16", 35, 500)


def breakdown(bench: Bench) -> None:
    batch = 2 if bench.toy else 256
    denoiser, seeds = denoiser_of(bench, "recorded"), torch.arange(batch)
    profile(
        bench, "8 evaluations", functools.partial(generate, denoiser, seeds, SAMPLERS[8], "random", batch, "bf16"), 2
    )
