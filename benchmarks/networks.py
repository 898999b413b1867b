"""Forward + backward of the networks on a CPU, side by side in one process, against their own floor and other code.

    python -m benchmarks.networks [--rounds 7] [--threads 2] [--case cifar10|small] [--clock wall|cpu]

The floor runs the same convolutions and matrix products alone (channels_last, forward and backward, nothing between
them). Ours has dropout masks by key, as in training, and in a line of its own torch's dropout. diffusers' UNet2DModel
and k-diffusion's ImageDenoiserModelV1 are taken at the nearest size; they differ in work, so the last column but one is
time an image a GMAC (multiply-adds of one forward pass, counted by torch's own counter).
Rounds are interleaved; medians and quartiles are printed as a Markdown table. --clock cpu counts this process's
processor time: with one thread, what the wall clock would say on a machine that others leave alone, or nearly.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import record
from edm_ray.config.network import DDPMpp
from edm_ray.networks import build_network
from edm_ray.networks.dropout import key_dropout, words_needed
from edm_ray.seeding import stream_key, words

CASES = {
    "cifar10": (DDPMpp(img_resolution=32, model_channels=128, channel_mult=(2, 2, 2), dropout=0.13), 4),
    "small": (
        DDPMpp(
            img_resolution=16, model_channels=32, channel_mult=(1, 2), num_blocks=4, attn_resolutions=(8,), dropout=0.13
        ),
        32,
    ),
}


@dataclass
class Contender:
    name: str
    step: Callable[[], None]
    """One forward and backward pass of the batch."""
    forward: Callable[[], object]
    batch: int

    def gmac(self) -> float:
        """Multiply-adds of one forward pass, in 10^9 an image."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.forward()
        return counter.get_total_flops() / 2e9 / self.batch


class Recorder(TorchFunctionMode):
    """Keeps the shapes of every convolution, linear layer and attention of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.conv2d or function is F.conv2d:
            options = {key: kwargs[key] for key in ("stride", "padding", "groups") if key in kwargs}
            self.calls.append(("conv", args[0].shape, args[1].shape, options))
        elif function is F.linear:
            self.calls.append(("linear", args[0].shape, args[1].shape, {}))
        elif function is F.scaled_dot_product_attention:
            self.calls.append(("attention", args[0].shape, args[1].shape, {}))
        return function(*args, **kwargs)


def floor_of(network: torch.nn.Module, inputs: tuple) -> Callable[[], None]:
    """The network's convolutions and matrix products alone, forward and backward."""
    with Recorder() as recorder, torch.no_grad():
        network(*inputs)
    work = []
    for kind, first, second, options in recorder.calls:
        x = torch.randn(first, requires_grad=True)
        if kind == "conv":
            x = torch.randn(first).to(memory_format=torch.channels_last).requires_grad_()
            w = torch.randn(second).to(memory_format=torch.channels_last).requires_grad_()
            work.append((F.conv2d, (x, w), options))
        elif kind == "linear":
            work.append((F.linear, (x, torch.randn(second, requires_grad=True)), options))
        else:
            k = torch.randn(first[:-2] + (first[-1], first[-2]), requires_grad=True)
            weights = torch.randn(first[:-1] + (second[-2],), requires_grad=True)
            work.append((torch.matmul, (x, k), {}))
            work.append((torch.matmul, (weights, torch.randn(second, requires_grad=True)), {}))
    gradients = [torch.ones_like(function(*args, **options)) for function, args, options in work]

    def step() -> None:
        for (function, args, options), gradient in zip(work, gradients):
            torch.autograd.grad(function(*args, **options), args, gradient)

    return step


def contender(name: str, network: torch.nn.Module, call: Callable[[], torch.Tensor], batch: int) -> Contender:
    parameters = list(network.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        call().square().sum().backward()

    return Contender(name, step, call, batch)


def ours(config: DDPMpp, batch: int, channels_last: bool, keyed: bool) -> tuple[Contender, Callable[[], None]]:
    """keyed: dropout masks are keyed by image, as in training; else they are torch's."""
    network = build_network(config).train()
    x = torch.randn(batch, config.img_channels, config.img_resolution, config.img_resolution)
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    inputs = (x, torch.randn(batch))
    name = f"edm_ray DDPM++{', channels_last' if channels_last else ''}{'' if keyed else ', dropout of torch'}"
    floor = floor_of(network, inputs)
    positions, needed = torch.arange(batch), words_needed(network)

    def call() -> torch.Tensor:
        if keyed:
            key_dropout(network, words(stream_key("dropout", 0), positions, needed))
        return network(*inputs)

    return contender(name, network, call, batch), floor


def diffusers_unet(config: DDPMpp, batch: int) -> Contender:
    from diffusers import UNet2DModel

    widths = tuple(config.model_channels * mult for mult in config.channel_mult)
    levels = [config.img_resolution >> level for level in range(len(widths))]
    down = ["AttnDownBlock2D" if level in config.attn_resolutions else "DownBlock2D" for level in levels]
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    network = UNet2DModel(
        sample_size=config.img_resolution,
        block_out_channels=widths,
        layers_per_block=config.num_blocks,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=min(32, min(widths) // 4),
        attention_head_dim=None,
        dropout=config.dropout,
    ).train()
    x, t = torch.randn(batch, 3, config.img_resolution, config.img_resolution), torch.arange(batch)
    return contender("diffusers UNet2DModel", network, lambda: network(x, t).sample, batch)


def k_diffusion_model(config: DDPMpp, batch: int) -> Contender:
    from k_diffusion.models.image_v1 import ImageDenoiserModelV1

    widths = [config.model_channels * mult for mult in config.channel_mult]
    attention = [config.img_resolution >> level in config.attn_resolutions for level in range(len(widths))]
    network = ImageDenoiserModelV1(
        3,
        4 * config.model_channels,
        [config.num_blocks] * len(widths),
        widths,
        attention,
        dropout_rate=config.dropout,
    ).train()
    x, sigma = torch.randn(batch, 3, config.img_resolution, config.img_resolution), torch.rand(batch) + 0.5
    return contender("k-diffusion ImageDenoiserModelV1", network, lambda: network(x, sigma), batch)


def run_case(case: str, rounds: int, now: Callable[[], float]) -> dict[str, tuple[str, list[float]]]:
    config, batch = CASES[case]
    plain, _ = ours(config, batch, channels_last=False, keyed=True)
    bare, _ = ours(config, batch, channels_last=False, keyed=False)
    last, floor = ours(config, batch, channels_last=True, keyed=True)
    contenders = [plain, bare, last]
    for make in (diffusers_unet, k_diffusion_model):
        try:
            contenders.append(make(config, batch))
        except ImportError as error:
            print(f"left out: {make.__name__}: {error}; pip install -r benchmarks/requirements.txt")
    gmac = {c.name: c.gmac() for c in contenders}
    floor_name = "floor: the same convolutions and matrix products"
    steps = {floor_name: floor, **{c.name: c.step for c in contenders}}
    gmac[floor_name] = gmac[last.name]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = now()
            steps[name]()
            if turn > 0:  # the first round warms up
                times[name].append(now() - began)
    size, threads = config.img_resolution, torch.get_num_threads()
    print(f"\nload average of the last minute: {os.getloadavg()[0]:.1f}, {threads} threads of it ours")
    print(f"\n{case}: {config.model_channels} channels x {config.channel_mult}, {size}x{size}, batch {batch}, ", end="")
    print(f"{threads} threads, fp32, {rounds} rounds\n")
    print("| what | ms an image (quartiles) | GMAC an image | ms a GMAC | x floor |")
    print("|---|---|---|---|---|")
    base = statistics.median(times[floor_name])
    for name, values in times.items():
        low, middle, high = quartiles([1e3 * value / batch for value in values])
        ratio = statistics.median(values) / base
        print(
            f"| {name} | {middle:.2f} ({low:.2f}-{high:.2f}) | {gmac[name]:.3f} | {middle / gmac[name]:.2f} | "
            f"{ratio:.2f} |"
        )
    return {
        f"{case}: {name}": ("ms an image", [1e3 * value / batch for value in values]) for name, values in times.items()
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision

    numbers: dict[str, tuple[str, list[float]]] = {}
    ensure_torchvision()  # both libraries import torchvision
    for case in CASES if args.case == "all" else [args.case]:
        numbers |= run_case(case, args.rounds, time.perf_counter if args.clock == "wall" else time.process_time)
    record("networks", numbers, vars(args))


if __name__ == "__main__":
    main()
