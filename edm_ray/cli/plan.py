"""What `edm-ray train --dry-run` prints: everything that is decided, and what it will need."""

from __future__ import annotations

import time

import torch

from edm_ray.cli.console import duration, say
from edm_ray.config.load import to_yaml
from edm_ray.config.published import Quantity, cpu_price, prices
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import rank_positions
from edm_ray.networks.build import build_denoiser
from edm_ray.networks.cost import network_cost
from edm_ray.training.cost import Workload, costs_at, dollars, gpu_hours, memory_gib, on_gpus, workload
from edm_ray.training.device import cpu_threads

MEASURED_IMAGES, MEASURED_STEPS = 4, 2


def print_plan(config: TrainingConfig, dataset: DataSet, workers: tuple[int, int], device: str, preset: str) -> None:
    """The batch and how it is shared, memory, data, Ray's bundles, time and cost, then the whole configuration."""
    least, most = workers
    cost = network_cost(config.denoiser, device)
    shares = {len(rank_positions(0, config.batch_size, rank, most, config.lanes)) for rank in range(most)}
    share = max(shares)
    at_once = min(config.micro_batch or share, share)
    rounds = -(-share // at_once)
    steps = -(-round(config.total_kimg * 1000) // config.batch_size)
    say("  batch     " + _batch(config.batch_size, most, sorted(shares), at_once, rounds))
    say(f"  steps     {steps:,}; {config.total_kimg * 1000 / dataset.rows / (2 if config.xflip else 1):,.1f} epochs")
    say(f"  memory    {memory_gib(cost, at_once, config.precision)}")
    decoded = dataset.rows * dataset.channels * dataset.resolution**2
    stored = sum(entry["bytes"] for entry in dataset.files.values())
    say(f"  data      {len(dataset.shards)} shards, {stored / 2**20:,.1f} MiB; {decoded / 2**20:,.1f} MiB decoded")
    unit = "1 GPU" if device == "cuda" else f"{config.threads} CPU{'s' * (config.threads > 1)}"
    many = f"{most} bundles of {unit}" if least == most else f"{least} to {most} bundles of {unit}"
    say(f"  Ray       {many}, one DDP process each ({'nccl' if device == 'cuda' else 'gloo'})")
    if device == "cuda" and not torch.cuda.is_available():
        hours = gpu_hours(preset, config, cost)
        say(f"  time      {hours}")
        say(f"  cost      {dollars(hours)}")
        say(f"  on GPUs   {_on_gpus(workload(preset, config, cost), most)}")
    else:
        with cpu_threads(config.threads):
            seconds = measure_image(config, device)
        say(
            f"  time      about {duration(seconds * config.total_kimg * 1000 / most)} with {most} such workers: "
            f"{seconds * 1e3:,.1f} ms an image (measured here, now, {MEASURED_IMAGES} images at a time, without the "
            "exchange of gradients)"
        )
        say(f"  cost      {_measured_cost(seconds * config.total_kimg * 1000 / 3600, config.threads, device)}")
    say()
    say(to_yaml(config).rstrip())


def _batch(batch: int, workers: int, shares: list[int], at_once: int, rounds: int) -> str:
    share = str(shares[0]) if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
    text = f"{batch} images = {workers} workers x {share}"
    return text if rounds == 1 else f"{text}, in {rounds} rounds of at most {at_once}"


def _on_gpus(work: Workload, count: int) -> str:
    """Time by the clock, from every assumed cost at its better end to every one at its worse end."""
    better, worse = (on_gpus(work, count, costs_at(end)) for end in (True, False))
    low, high = (f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}" for hours in (better.hours, worse.hours))
    why = "" if worse.bottleneck == "none" else f", first bottleneck: {worse.bottleneck}"
    return (
        f"{count} A100: {low} to {high} hours by the clock, efficiency "
        f"{worse.efficiency:.0%} to {better.efficiency:.0%}{why} (assumed: the costs that research/scale lists)"
    )


def _measured_cost(hours: float, threads: int, device: str) -> Quantity | str:
    """Money for so many hours of one worker, in all."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        known = [gpu for gpu in prices().get("gpu_hour", {}) if gpu in name]
        if not known:
            return f"{hours:,.1f} hours of {name}, which has no price; add it below gpu_hour, or in EDM_RAY_PRICES"
        return dollars(Quantity(value=hours, unit=f"{known[0]} hours", kind="measured", source="here"))
    price = cpu_price()
    return Quantity(value=hours * threads * price.value, unit="USD", kind="assumed", source=f"at {price}")


def measure_image(config: TrainingConfig, device: str) -> float:
    """Seconds of one image's forward and backward pass on this machine: the best of a few small steps."""
    network = config.denoiser.network
    denoiser = build_denoiser(config.denoiser).to(device).train()
    shape = (MEASURED_IMAGES, network.img_channels, network.img_resolution, network.img_resolution)
    images, sigma = torch.zeros(shape, device=device), torch.ones(MEASURED_IMAGES, device=device)
    times = []
    for _ in range(MEASURED_STEPS + 1):
        began = time.perf_counter()
        denoiser(images, sigma).square().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:]) / MEASURED_IMAGES
