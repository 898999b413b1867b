"""Another library's U-Net beside ours, in the same run: time an image per GMAC, an evaluation in bf16."""

from __future__ import annotations

import functools
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, spread
from benchmarks.gpu.sampling import denoiser_of
from edm_ray.generation.generate import network_precision
from edm_ray.networks.cost import network_cost


def diffusers(bench: Bench) -> None:
    """UNet2DModel of google/ddpm-cifar10-32's configuration: eager and compiled. Left out if not installed."""
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        bench.row("peers", left_out="diffusers", error=str(error)[:100])
        return
    batch = 2 if bench.toy else 256
    ours = denoiser_of(bench, "recorded")
    macs = network_cost(bench.config().denoiser).forward_macs
    x, labels = torch.randn(batch, 3, 32, 32, device=bench.device), torch.eye(10, device=bench.device)[:1]
    sigma = torch.ones(batch, device=bench.device, dtype=torch.float64)
    with network_precision("bf16", bench.device), torch.inference_mode():
        work = functools.partial(ours, x.double(), sigma, labels.expand(batch, 10))
        _row(bench, "ours, as the product runs", macs, batch, work)
    wide = (32, 32, 32, 32) if bench.toy else (128, 256, 256, 256)
    model = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=wide,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model = model.to(bench.device).eval()
    theirs = _macs(model, x[:1])
    last = model.to(memory_format=torch.channels_last)
    forms = {"diffusers, eager": model, "diffusers, compiled": None if bench.toy else torch.compile(last)}
    for name, network in forms.items():
        if network is not None:
            with torch.autocast(bench.device.type, torch.bfloat16), torch.inference_mode():
                images = x.to(memory_format=torch.channels_last)
                _row(bench, name, theirs, batch, functools.partial(network, images, 10, return_dict=False))


def _row(bench: Bench, name: str, macs: float, batch: int, work: Any) -> None:
    seconds = spread(bench.time(work, rounds=5))["median"]
    bench.row(
        "peers", network=name, batch=batch, gmacs=macs / 1e9, ms=1e3 * seconds,
        us_an_image_per_gmac=1e6 * seconds / batch / (macs / 1e9),
    )  # fmt: skip


def _macs(model: Any, x: torch.Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(x, 10)
    return counter.get_total_flops() / 2
