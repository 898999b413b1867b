"""What `--dry-run` of evaluate and sweep says: images, network calls, time and cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edm_ray.cli.console import duration
from edm_ray.cli.plan import measured_cost
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.reference import ExtractorSpec
from edm_ray.execution.executor import Executor
from edm_ray.generation.generate import MICRO_BATCH, network_precision
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model
from edm_ray.networks.cost import network_cost
from edm_ray.training.cost import costs_at, sampling_hours
from edm_ray.training.device import cpu_threads

IMAGES_AT_A_TIME, SLOW_SECONDS = 8, 0.5


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be sampled and measured."""

    images: int
    calls: float | None
    """Network calls of one image, in all; None where nobody knows: the steps of rk45 adapt."""
    at_most: bool = False
    stored: int = 0
    """Of the images, so many are there already."""
    real: int = 0
    """Real images whose features are taken too."""
    precision: str = "fp32"
    micro_batch: int = MICRO_BATCH

    @property
    def new(self) -> float:
        """The share that is not stored."""
        return 1 - self.stored / self.images if self.images else 0.0


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What work takes: for people, and as numbers (hours by the clock and USD, from the better to the worse end)."""

    lines: list[str]
    facts: dict[str, Any]


def spending(work: Work, model: Model, extractors: Sequence[ExtractorSpec], on: Executor) -> Spending:
    """Speeds are measured here, where this machine has such a device, else those of the cost model."""
    most = "at most " if work.at_most else ""
    there = f", {work.stored:,} of them stored already" if work.stored else ""
    if work.calls is None:
        unknown = "time      not known: the steps of rk45 adapt to the model"
        return Spending(lines=[f"images    {most}{work.images:,}{there}", unknown], facts={})
    lines = [f"images    {most}{work.images:,}{there}; {most}{work.calls:,.0f} network calls"]
    calls, features = work.calls * work.new, work.images * work.new + work.real
    if on.device == "cuda" and not torch.cuda.is_available():
        return _assumed(lines, model, calls, features, on.size)
    call = _call_seconds(model, on.device, work)
    feature = sum(_feature_seconds(each, model, on.device) for each in extractors)
    hours = (calls * call + features * feature) / 3600
    speeds = f"{call * 1e3:.3g} ms a network call, {feature * 1e3:.3g} ms the features of an image"
    workers = "one worker" if on.size == 1 else f"{on.size} such workers"
    cost = measured_cost(hours, 1, on.device)
    lines += [
        f"time      {most or 'about '}{_span(hours / on.size)} with {workers}: {speeds} (measured here, now)",
        f"cost      {cost}",
    ]
    known = {} if isinstance(cost, str) else {"usd": [cost.value, cost.value]}
    facts = {"hours": [hours / on.size] * 2, "kind": "measured", **known, "call_s": call, "feature_s": feature}
    return Spending(lines=lines, facts=facts)


def _assumed(lines: list[str], model: Model, calls: float, features: float, count: int) -> Spending:
    """From every assumed cost at its better end to every one at its worse end."""
    cost, ends = network_cost(model.config), [costs_at(better) for better in (True, False)]
    low, high = (sampling_hours(cost, calls, features, costs) for costs in ends)
    cheap, dear = low * ends[0]["a100_hour"], high * ends[1]["a100_hour"]
    source = "assumed: the paper's training speed by multiply-adds, and the costs that research/scale lists"
    most = "at most " if "at most" in lines[0] else ""
    lines += [
        f"time      {most}{_span(low / count)} to {_span(high / count)} on {count} A100 ({source})",
        f"cost      {_range(most, cheap, dear)} USD (assumed: spot at its lowest to on-demand)",
    ]
    facts = {"hours": [low / count, high / count], "kind": "assumed", "usd": [cheap, dear]}
    return Spending(lines=lines, facts=facts)


def _range(most: str, cheap: float, dear: float) -> str:
    """Of dollars."""
    return "under 0.01" if dear < 0.01 else f"{most}{cheap:,.2f} to {dear:,.2f}"


def _span(hours: float) -> str:
    return "under 1 s" if hours < 1 / 3600 else duration(hours * 3600)


def _call_seconds(model: Model, device: str, work: Work) -> float:
    """Of the network, for one image: the better of two batches, or the only image of a slow network. On a GPU of so
    many images as it will see at once."""
    denoiser: ModelDenoiser = model.denoiser(device)

    @torch.inference_mode()
    def call(count: int) -> float:
        noise = torch.zeros(count, *denoiser.shape, dtype=torch.float64, device=device)
        classes = denoiser.label_dim
        labels = torch.zeros(count, classes, device=device) if classes else None
        began = time.perf_counter()
        result = denoiser(noise, torch.ones(count, dtype=torch.float64, device=device), labels)
        result.sum().item()  # waits for a GPU
        return (time.perf_counter() - began) / count

    at_once = IMAGES_AT_A_TIME if device == "cpu" else work.micro_batch
    with cpu_threads(1), network_precision(work.precision, torch.device(device)):
        if (first := call(1)) > SLOW_SECONDS:
            return first
        return min(call(at_once), call(at_once))  # the first is recorded on a GPU, the second replayed


def _feature_seconds(spec: ExtractorSpec, model: Model, device: str) -> float:
    """Of an extractor, for one image of a micro-batch like those that the model makes. Raises InputError for an
    extractor that does not take them."""
    extractor: Extractor = spec.load(device)
    network = model.config.network
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    shape = shape if model.codec.is_pixels else (3, *shape[1:])
    images = torch.zeros(extractor.micro_batch, *shape, dtype=torch.uint8)
    with cpu_threads(1):
        began = time.perf_counter()
        extractor.extract(images)
        return (time.perf_counter() - began) / extractor.micro_batch
