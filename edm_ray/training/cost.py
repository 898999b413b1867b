"""What a run will need, before it starts: memory a worker, GPU time, money, and how N GPUs share it.

Every number says where it is from. On N GPUs everything is worked out twice, with every cost at its better and at its
worse end. A step is its slowest part: compute (images a GPU, with small batches used badly) plus what of the all-reduce
compute does not hide, plus the host; or reading, when that cannot keep up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from edm_ray.config.network import OwnNetwork
from edm_ray.config.published import PAPER_IMAGES, V100_HOURS, Quantity, Range, gpu_price, scaling_costs
from edm_ray.config.recipes import CIFAR10, config_f
from edm_ray.config.shape import DataShape
from edm_ray.config.training import TrainingConfig
from edm_ray.errors import InputError
from edm_ray.networks.cost import NetworkCost, network_cost
from edm_ray.training.device import Place

STATE_BYTES = 4 * 5
"""A parameter in fp32: itself, its gradient, Adam's two moments, its average."""
GIB = 1 << 30
MOST_GIB = {"cpu": 4096.0, "cuda": 288.0}
"""More than a worker has anywhere."""
GPU_SLACK = 1.25
"""The estimate of a GPU's memory may be so much too high: kernels differ in what they keep."""
GPUS_A_NODE = 8
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def node_count(workers: int, device: str, here: bool) -> int:
    """Of so many workers, eight to a node as GPUs are. here: no cluster is named, so CPU workers are on one machine."""
    return 1 if here and device == "cpu" else math.ceil(workers / GPUS_A_NODE)


def memory_gib(cost: NetworkCost, images: int, precision: str) -> Quantity:
    """Parameters, optimizer, averages and activations of one worker that holds ``images`` at once."""
    low = precision in ("bf16", "fp16")
    saved = cost.saved_bytes / (2 if low else 1)
    # Weights are kept in 16 bits too; on a GPU gradients take the place of activations, which go as they come.
    state = STATE_BYTES + 2 * low - 4 * (cost.device == "cuda")
    return Quantity(
        value=(cost.parameters * state + saved * images) / GIB,
        unit="GiB a worker",
        kind="assumed" if low else "computed",
        source=f"{state} bytes a parameter and {saved / 2**20:,.1f} MiB of activations an image "
        f"x {images} images, {f'in {precision} half of those in fp32' if low else 'fp32'}, without the library's own "
        "workspace",
    )


def check_memory(config: TrainingConfig, workers: int, device: str, here: bool) -> None:
    """Refuse a step that no worker can hold, before anything of its size is made. here: all workers on this machine,
    whose memory is known; else only what no machine has is refused. Raises InputError with the micro_batch that fits.
    """
    if isinstance(config.denoiser.network, OwnNetwork):
        return  # its activations are not known
    share = math.ceil(config.batch_size / workers)
    at_once = min(config.micro_batch or share, share)
    together = workers if here and device == "cpu" else 1
    known = machine_gib(device) if here else None
    most = MOST_GIB[device] if known is None else known
    cost = network_cost(config.denoiser, device)

    def needed(images: int) -> float:
        return memory_gib(cost, images, config.precision).value * together

    if needed(at_once) <= most * (GPU_SLACK if device == "cuda" else 1.0):
        return
    fits = at_once
    while fits > 1 and needed(fits) > 0.5 * most:
        fits //= 2
    whose = "no machine has more than" if known is None else f"this {'GPU' if device == 'cuda' else 'machine'} has"
    each = f"{workers} workers with {at_once:,} images each" if together > 1 else f"{at_once:,} images"
    smaller = f"--set micro_batch={1 << (fits.bit_length() - 1)}, a smaller batch, or a smaller network"
    raise InputError(
        f"batch_size={config.batch_size}: {each} at once take about {needed(at_once):,.0f} GiB, {whose} "
        f"{most:,.0f} GiB; give {smaller if needed(1) <= most else 'a smaller network'} (`edm-ray presets`)"
    )


def machine_gib(device: str) -> float | None:
    """Memory of this machine (what its container may use), or of its first GPU; None where it has none."""
    if device == "cuda":
        found = torch.cuda.is_available()
        return torch.cuda.get_device_properties(0).total_memory / GIB if found else None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    try:
        return min(total, int(CGROUP_LIMIT.read_text()) / GIB)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return total


def out_of_memory(config: TrainingConfig, place: Place, device: torch.device) -> str:
    """What to do when a step did not fit the GPU: the largest micro_batch (a power of two) that should, by
    `memory_gib`, with a tenth to spare."""
    share = math.ceil(config.batch_size / place.world_size)
    at_once = min(config.micro_batch or share, share)
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    name = f"{torch.cuda.get_device_name(device)} ({total:.0f} GiB)"
    cost, fits = network_cost(config.denoiser, device.type), at_once // 2
    while fits > 1 and memory_gib(cost, fits, config.precision).value > 0.9 * total:
        fits //= 2
    tried = f"{name}: a step with {at_once} images at once does not fit its memory"
    if fits == 0:
        return f"{tried}; train a smaller network, or with --set precision=bf16"
    return f"{tried}; give --set micro_batch={1 << (fits.bit_length() - 1)} (the result is the same up to rounding)"


def gpu_hours(preset: str, config: TrainingConfig, cost: NetworkCost) -> Quantity:
    """The published time where the paper trained this configuration, else that time scaled by multiply-adds."""
    family = preset.split("-")[0]
    if preset.endswith(("-f", "-adm")) and family in V100_HOURS:
        return V100_HOURS[family]
    known = network_cost(config_f(DataShape(resolution=32, channels=3, num_classes=0), CIFAR10, "vp").denoiser)
    scale = cost.forward_macs * config.total_kimg * 1000 / (known.forward_macs * PAPER_IMAGES["cifar10"])
    return Quantity(
        value=V100_HOURS["cifar10"].value * scale,
        unit="V100 hours",
        kind="assumed",
        source="the paper's CIFAR-10 time scaled by images x multiply-adds; small networks use a GPU worse than that",
    )


def dollars(hours: Quantity) -> Quantity:
    """GPU time in money, at an assumed price."""
    price = gpu_price(hours.unit.split()[0])
    return Quantity(value=hours.value * price.value, unit="USD", kind="assumed", source=f"at {price.terms}")


Costs = Mapping[str, float]
"""Every cost of `scaling_costs` at one end."""


def costs_at(better: bool, table: Mapping[str, Range] | None = None) -> Costs:
    """All costs at their better or at their worse end."""
    entries = scaling_costs() if table is None else table
    return {name: entry.better if better else entry.worse for name, entry in entries.items()}


@dataclass(frozen=True)
class Workload:
    name: str
    images: float
    batch: int
    gradient_bytes: float
    hours: Quantity
    """GPU time of one GPU at a large batch: V100 or A100 hours."""

    def rate(self, costs: Costs) -> float:
        """Images/s of an A100 at a large batch."""
        rate = self.images / (self.hours.value * 3600)
        return rate * (costs["a100_by_v100"] if self.hours.unit.startswith("V100") else 1.0)

    def call_rate(self, costs: Costs) -> float:
        """Network calls/s of an A100 in sampling; a training image costs about three forward passes."""
        return 3.0 * self.rate(costs) * costs["sampling"]


@dataclass(frozen=True)
class Estimate:
    """What N GPUs do, at one end of the costs."""

    hours: float
    efficiency: float
    """Against N times one GPU at a large batch."""
    bottleneck: str
    dollars: float


def workload(name: str, config: TrainingConfig, cost: NetworkCost) -> Workload:
    """The run that ``config`` describes; ``name``: its preset, which may have a published time."""
    hours = gpu_hours(name, config, cost)
    return Workload(name, config.total_kimg * 1000, config.batch_size, cost.parameters * 4.0, hours)


def sampling_hours(cost: NetworkCost, calls: float, features: float, costs: Costs) -> float:
    """A100 hours of so many network calls of one image, and of Inception features of so many images."""
    known = network_cost(config_f(DataShape(resolution=32, channels=3, num_classes=0), CIFAR10, "vp").denoiser)
    work = Workload("cifar10", PAPER_IMAGES["cifar10"], 512, known.parameters * 4.0, V100_HOURS["cifar10"])
    rate = work.call_rate(costs) * known.forward_macs / cost.forward_macs
    return (calls / rate + features / costs["inception"]) / 3600


def all_reduce(count: int, size: float, costs: Costs) -> float:
    """Ring inside a node, then between nodes, s; ``size`` in bytes."""
    inside = min(count, GPUS_A_NODE)
    nodes = math.ceil(count / GPUS_A_NODE)
    time = 2 * (inside - 1) / inside * size / costs["link_bandwidth"]
    if nodes > 1:
        time += 2 * (nodes - 1) / nodes * size / costs["node_bandwidth"] + 2 * math.log2(nodes) * costs["hop"]
    return time


def exposed(compute: float, reducing: float, costs: Costs) -> float:
    """What of the all-reduce a step waits for, s: the backward pass hides the rest."""
    return max(0.0, reducing - costs["hidden"] * compute)


def on_gpus(work: Workload, count: int, costs: Costs) -> Estimate:
    """One run on ``count`` A100s, spot losses included."""
    rate = work.rate(costs)
    share = work.batch / count
    ideal = share / rate
    compute = ideal * (1 + costs["half_batch"] / share)
    waited = exposed(compute, all_reduce(count, work.gradient_bytes, costs), costs)
    reading = share / (costs["read"] * costs["cores"])
    step = max(compute + waited + costs["host"], reading)
    nodes = math.ceil(count / GPUS_A_NODE)
    # Losses come at `lost` an hour and node; each costs a restart and half of what lies between two checkpoints.
    wasted = min(0.9, costs["lost"] * nodes * (costs["restart"] + costs["tick"] / 2) / 3600)
    parts = {
        "small batches": compute - ideal,
        "all-reduce": waited,
        "host": costs["host"],
        "reading": max(0.0, reading - compute - waited - costs["host"]),
        "spot losses": step * wasted / (1 - wasted),
    }
    hours = work.images / work.batch * step / (1 - wasted) / 3600
    efficiency = work.images / rate / count / 3600 / hours
    worst = max(parts, key=lambda name: parts[name])
    return Estimate(hours, efficiency, worst if efficiency < 0.95 else "none", hours * count * costs["a100_hour"])
