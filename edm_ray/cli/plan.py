"""What `edm-ray train --dry-run` prints: everything that is decided, what it will need, and a better preset if any."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import safetensors.torch
import torch

from edm_ray.cli.console import duration, report, say
from edm_ray.config.load import to_flat, to_yaml
from edm_ray.config.presets import DEFAULT, PRESETS, proposed
from edm_ray.config.published import Quantity, cpu_price, prices
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.data.order import rank_positions
from edm_ray.errors import InputError, counted
from edm_ray.networks.build import build_denoiser
from edm_ray.networks.cost import network_cost
from edm_ray.training.checkpoint_interval import NODE_HOURS, best_interval, lost_share
from edm_ray.training.cost import (
    Workload,
    costs_at,
    dollars,
    gpu_hours,
    machine_gib,
    memory_gib,
    node_count,
    on_gpus,
    workload,
)
from edm_ray.training.device import cpu_threads

MEASURED_IMAGES, MEASURED_STEPS = 4, 2
CHECKPOINT_BYTES = 1 << 25
"""Of a checkpoint, so many are copied and written to memory."""
SLOW_SECONDS = 0.5
"""A network that takes longer for one image is measured with one."""
LONG_HOURS, UNASKED_HOURS = 72.0, 30 * 24.0
"""A plan of more hours gets a warning; of more hours, it is not started unless its preset was asked for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training that was configured, and where it is to run."""

    config: TrainingConfig
    dataset: DataSet
    workers: tuple[int, int]
    """At least, at most."""
    device: str
    preset: str | None
    """None: not said, so DEFAULT."""
    here: bool
    """All workers are on this machine."""
    node_hours: float = NODE_HOURS
    """Between two failures of one node."""
    on_ray: bool = True

    @property
    def name(self) -> str:
        return self.preset or DEFAULT

    @property
    def images(self) -> float:
        return self.config.total_kimg * 1000

    @property
    def epochs(self) -> float:
        return self.images / self.dataset.rows / (2 if self.config.xflip else 1)

    @property
    def measurable(self) -> bool:
        """Whether this machine has such a device."""
        return self.device != "cuda" or torch.cuda.is_available()


def print_plan(plan: Plan) -> None:
    """The batch and how it is shared, memory, data, Ray's bundles, time and cost, then the whole configuration."""
    config, dataset, most = plan.config, plan.dataset, plan.workers[1]
    cost = network_cost(config.denoiser, plan.device)
    shares = {len(rank_positions(0, config.batch_size, rank, most, config.lanes)) for rank in range(most)}
    share = max(shares)
    at_once = min(config.micro_batch or share, share)
    rounds = -(-share // at_once)
    say("  batch     " + _batch(config.batch_size, most, sorted(shares), at_once, rounds))
    say(f"  steps     {-(-round(plan.images) // config.batch_size):,}; {plan.epochs:,.1f} epochs")
    has = machine_gib(plan.device) if plan.here else None
    of = "" if has is None else f"; this {'GPU' if plan.device == 'cuda' else 'machine'} has {has:,.0f} GiB"
    say(f"  memory    {memory_gib(cost, at_once, config.precision)}{of}")
    if plan.device == "cuda" and config.precision == "fp32":
        say("  precision fp32; on an H100 `--set precision=bf16` trained 11 times as fast")
    decoded = dataset.rows * dataset.channels * dataset.resolution**2
    stored = sum(entry["bytes"] for entry in dataset.files.values())
    shards = counted(len(dataset.shards), "shard")
    say(f"  data      {shards}, {stored / 2**20:,.1f} MiB; {decoded / 2**20:,.1f} MiB decoded")
    if plan.on_ray:
        say(f"  Ray       {_bundles(plan)}, one DDP process each ({'nccl' if plan.device == 'cuda' else 'gloo'})")
    if plan.measurable:
        seconds, at_a_time = measure_image(config, plan.device)
        hours = seconds * plan.images / 3600
        say(
            f"  time      about {duration(hours * 3600 / most)} with {counted(most, 'such worker')}: "
            f"{seconds * 1e3:,.1f} ms an image (measured here, now, {at_a_time} at a time, without the exchange of "
            "gradients)"
        )
        say(f"  cost      {measured_cost(hours, config.threads, plan.device)}")
    else:
        published = gpu_hours(plan.name, config, cost)
        hours = published.value
        say(f"  time      {published}")
        say(f"  cost      {dollars(published)}")
        say(f"  on GPUs   {_on_gpus(workload(plan.name, config, cost), most)}")
    saving = checkpointing(plan, hours / most * 3600 / plan.images, cost.parameters)
    say(f"  failures  {saving}")
    say()
    say(to_yaml(config).rstrip())
    warning = warned(plan, hours / most)
    memory = memory_gib(cost, at_once, config.precision).value
    facts = {"parameters": cost.parameters, "gib_a_worker": memory, "hours": hours / most, "epochs": plan.epochs}
    facts |= {"checkpoint_s": saving.own_s, "best_checkpoint_s": saving.best_s}
    report({"preset": plan.name, **facts, "warning": warning, "config": to_flat(config)})
    if warning:  # last: it is what should be seen
        say(f"\nWARNING: {warning}")


def warned(plan: Plan, hours: float | None) -> str | None:
    """What is wrong with a plan that takes so many hours by the clock (None: not known), and which preset is for such
    data; None where nothing is."""
    better = proposed(plan.dataset.shape, plan.dataset.rows, plan.device)
    if better == plan.name or (plan.preset is not None and hours is not None and hours <= LONG_HOURS):
        return None
    shape, where = plan.dataset.shape, "this machine" if plan.here and plan.measurable else "a cluster"
    what = "pictures" if plan.dataset.codec.is_pixels else "latents"
    of = f"{plan.dataset.rows:,} {what} of {shape.resolution}x{shape.resolution} on {_device(plan)} of {where}"
    takes = "see" if hours is None else f"take {duration(hours * 3600)} and see"
    large = ""
    if shape.resolution > 64:
        large = "; the presets are for up to 64x64: `edm-ray prepare --resolution 64`, or latents, take less"
    about = PRESETS[better].about.partition(":")[2].strip().rstrip(".")
    return (
        f"{of}: give --preset {better}{f' ({about})' if about else ''}; this plan ({plan.name}) would {takes} "
        f"each {plan.epochs:,.0f} times{large}"
    )


def _device(plan: Plan) -> str:
    kind = "GPU" if plan.device == "cuda" else "CPU"
    count = plan.workers[1] * (1 if plan.device == "cuda" else plan.config.threads)
    return f"{count} {kind}{'s' * (count > 1)}"


def refuse_years(plan: Plan) -> None:
    """Without --preset nothing is started that takes more than a month. Raises InputError with the preset to give."""
    if plan.preset is not None or proposed(plan.dataset.shape, plan.dataset.rows, plan.device) == plan.name:
        return
    hours = hours_by_clock(plan)
    if hours is not None and hours > UNASKED_HOURS:
        raise InputError(f"{warned(plan, hours)}; if that is what you want, give --preset {DEFAULT}")


def hours_by_clock(plan: Plan) -> float | None:
    """About; None where this machine cannot even hold one image's step."""
    cost = network_cost(plan.config.denoiser, plan.device)
    if not plan.measurable:
        return gpu_hours(plan.name, plan.config, cost).value / plan.workers[1]
    if memory_gib(cost, 1, plan.config.precision).value > 0.5 * (machine_gib(plan.device) or 0.0):
        return None
    return measure_image(plan.config, plan.device)[0] * plan.images / 3600 / plan.workers[1]


def _bundles(plan: Plan) -> str:
    unit = "1 GPU" if plan.device == "cuda" else counted(plan.config.threads, "CPU")
    least, most = plan.workers
    return f"{counted(most, 'bundle')} of {unit}" if least == most else f"{least} to {most} bundles of {unit}"


def _batch(batch: int, workers: int, shares: list[int], at_once: int, rounds: int) -> str:
    share = str(shares[0]) if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
    text = f"{batch} images = {counted(workers, 'worker')} x {share}"
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


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """How often checkpoints are made, and what of the time that and failures cost."""

    image_s: float
    """Of the whole group."""
    kimg: float
    """checkpoint_kimg."""
    cost_s: float
    mtbf_s: float
    """Of the whole group; 0: no failures are planned with."""

    @property
    def own_s(self) -> float:
        """Between those of checkpoint_kimg."""
        return self.kimg * 1000 * self.image_s

    @property
    def best_s(self) -> float:
        return best_interval(self.cost_s, self.mtbf_s) if self.mtbf_s else self.own_s

    def __str__(self) -> str:
        if not self.mtbf_s:
            return f"none expected (--node-hours 0); a checkpoint each {self.kimg:g} kimg ({duration(self.own_s)})"
        own, best = (lost_share(seconds, self.cost_s, self.mtbf_s) for seconds in (self.own_s, self.best_s))
        kimg = f"{self.best_s / self.image_s / 1000:.3g}"
        rate = f"one each {self.mtbf_s / 3600:.3g} h (--node-hours)"
        today = f"checkpoint_kimg={self.kimg:g} ({duration(self.own_s)}) loses {own:.2%} of the time"
        better = f"{kimg} kimg ({duration(self.best_s)})"
        if self.own_s > self.best_s:
            return f"{rate}: {today}, so the run also makes a checkpoint each {better}, which loses {best:.2%}"
        return f"{rate}: {today}; {better} would lose {best:.2%}"


def checkpointing(plan: Plan, image_s: float, parameters: int) -> Checkpointing:
    """image_s: seconds of one image, of the whole group."""
    # Weights, their average, Adam's two moments, further averages.
    state = parameters * 4 * (4 + len(plan.config.ema.sigma_rels))
    return Checkpointing(
        image_s=image_s,
        kimg=plan.config.checkpoint_kimg,
        cost_s=measure_checkpoint(state),
        mtbf_s=3600 * plan.node_hours / node_count(plan.workers[1], plan.device, plan.here),
    )


def measure_checkpoint(size: int) -> float:
    """Seconds that a checkpoint of so many bytes takes this machine: a copy, then the files and their checksums. A part
    of it is measured."""
    part = torch.zeros(min(size, CHECKPOINT_BYTES) // 4)
    began = time.perf_counter()
    hashlib.sha256(safetensors.torch.save({"part": part.clone()})).digest()
    return (time.perf_counter() - began) * size / (part.numel() * 4)


def measured_cost(hours: float, threads: int, device: str) -> Quantity | str:
    """Money for so many hours of one worker, in all."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        known = [gpu for gpu in prices().get("gpu_hour", {}) if gpu in name]
        if not known:
            return f"{hours:,.1f} hours of {name}, which has no price; add it below gpu_hour, or in EDM_RAY_PRICES"
        return dollars(Quantity(value=hours, unit=f"{known[0]} hours", kind="measured", source="here"))
    price = cpu_price()
    return Quantity(value=hours * threads * price.value, unit="USD", kind="assumed", source=f"at {price.terms}")


def measure_image(config: TrainingConfig, device: str) -> tuple[float, int]:
    """Seconds of one image's forward and backward pass on this machine, and how many were taken at a time: the best of
    a few small steps, or the only step of a network that is slow."""
    network = config.denoiser.network
    denoiser = build_denoiser(config.denoiser).to(device).train()

    def step(count: int) -> float:
        shape = (count, network.img_channels, network.img_resolution, network.img_resolution)
        images, sigma = torch.zeros(shape, device=device), torch.ones(count, device=device)
        began = time.perf_counter()
        denoiser(images, sigma).square().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    with cpu_threads(config.threads):
        if (first := step(1)) > SLOW_SECONDS:
            return (first if device == "cpu" else step(1)), 1
        return min([step(MEASURED_IMAGES) for _ in range(MEASURED_STEPS + 1)][1:]), MEASURED_IMAGES
