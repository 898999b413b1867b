"""Costs that estimates are made of, each with where it is from: published by the paper, measured here, or assumed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edm_ray.config.text import read_yaml
from edm_ray.errors import InputError

PRICES_FILE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    value: float
    unit: str
    kind: str
    """measured | computed | published | assumed."""
    source: str

    def __str__(self) -> str:
        return f"{self.amount} ({self.kind}: {self.source})"

    @property
    def amount(self) -> str:
        """For people: small amounts in a smaller unit, or as less than one of it."""
        value, unit = self.value, self.unit
        if unit == "USD" and 0 < value < 0.01:
            return "under 0.01 USD"
        if unit.startswith("GiB") and value < 0.1:
            value, unit = round(value * 1024), unit.replace("GiB", "MiB", 1)
        elif unit.endswith(" hours") and value < 0.1:
            value, unit = round(value * 3600), unit.removesuffix("hours") + "seconds"
            if value < 1:
                return f"under 1 {unit.removesuffix('s')}"
        return f"{value:,.0f} {unit}" if value >= 1e4 else f"{value:,.4g} {unit}"

    @property
    def terms(self) -> str:
        """As part of another quantity's source."""
        return f"{self.amount}, {self.source}"


V100_HOURS = {
    "cifar10": Quantity(
        value=384, unit="V100 hours", kind="published", source="Karras et al. 2022: about 2 days on 8 V100 for 200 Mimg"
    ),
    "ffhq64": Quantity(
        value=768, unit="V100 hours", kind="published", source="Karras et al. 2022: about 4 days on 8 V100 for 200 Mimg"
    ),
    "imagenet64": Quantity(
        value=9984,
        unit="A100 hours",
        kind="published",
        source="Karras et al. 2022: about 13 days on 32 A100 for 2500 Mimg",
    ),
}

PAPER_IMAGES = {"cifar10": 200e6, "ffhq64": 200e6, "imagenet64": 2500e6}
"""Training images that V100_HOURS are for."""


@lru_cache(maxsize=8)
def _prices(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise InputError(f"EDM_RAY_PRICES={path}: no such file; copy {PRICES_FILE} and edit it")
    return read_yaml(path)


def prices() -> dict[str, Any]:
    """The price list: the file EDM_RAY_PRICES names, else the one that comes with the package."""
    return _prices(os.environ.get("EDM_RAY_PRICES", str(PRICES_FILE)))


def cpu_price() -> Quantity:
    """One virtual CPU for an hour, on demand."""
    table = prices()
    if "cpu_hour" not in table:
        raise InputError(f"no price of a CPU; add cpu_hour to {os.environ.get('EDM_RAY_PRICES', str(PRICES_FILE))}")
    source = f"on-demand list price, {table['date']}"
    return Quantity(value=float(table["cpu_hour"]), unit="USD an hour", kind="assumed", source=source)


def gpu_price(gpu: str) -> Quantity:
    """One GPU for an hour, on demand. Raises InputError for a GPU that the price list does not have."""
    table = prices()
    if gpu not in table.get("gpu_hour", {}):
        raise InputError(f"{gpu}: no price; add it below gpu_hour in {PRICES_FILE}, or in the file of EDM_RAY_PRICES")
    source = f"on-demand list price, {table['date']}"
    return Quantity(value=float(table["gpu_hour"][gpu]), unit="USD an hour", kind="assumed", source=source)


@dataclass(frozen=True)
class Range:
    """One cost, at its better and at its worse end."""

    name: str
    better: float
    worse: float
    unit: str
    kind: str
    """measured | published | assumed."""
    source: str


def _published_rate(name: str, family: str) -> Range:
    hours = V100_HOURS[family]
    rate = PAPER_IMAGES[family] / (hours.value * 3600)
    return Range(name, rate, rate, "images/s", "published", hours.source)


_HERE = "on 2 shared CPU cores; research/scale/measured.json"


def scaling_costs() -> dict[str, Range]:
    """What a step, a run and a sweep on many GPUs cost (`training/cost.py`, `research/scale`).

    Measured ones are those of research/scale/measured.json, which a test compares.
    """
    spot, a100 = prices()["spot"], gpu_price("A100").value
    return {
        "cifar_v100": _published_rate("CIFAR-10 training, a V100", "cifar10"),
        "imagenet_a100": _published_rate("ImageNet-64 training, an A100", "imagenet64"),
        "a100_by_v100": Range(
            "A100 / V100 for this network", 3.0, 1.8, "x", "assumed", "mixed precision; not measured"
        ),
        "half_batch": Range(
            "images a GPU at which half its speed is lost", 1.0, 6.0, "images", "assumed", "small kernels; not measured"
        ),
        "host": Range(
            "host time a step beside the GPU",
            0.01773007200063148 * 0.2,
            0.04630009200081986,
            "s",
            "assumed",
            f"between a fifth and all of a tiny network's whole step, which was measured {_HERE}",
        ),
        "node_bandwidth": Range(
            "network of a node", 40e9, 10e9, "bytes/s", "assumed", "400 and 100 Gbit/s, less losses"
        ),
        "link_bandwidth": Range(
            "GPUs of one node", 200e9, 80e9, "bytes/s", "assumed", "NVLink, all-reduce bus bandwidth"
        ),
        "hop": Range("latency of one all-reduce hop", 15e-6, 60e-6, "s", "assumed", "between nodes, NCCL tree"),
        "hidden": Range(
            "part of a step that can hide the all-reduce",
            0.6,
            0.0,
            "",
            "assumed",
            "DDP's overlap with the backward pass; on CPUs none was seen (below)",
        ),
        "read": Range(
            "pictures decoded (PNG, 32x32)", 10617.792430148102, 8871.877615601315, "images/s a core", "measured", _HERE
        ),
        "cores": Range("CPU cores a GPU", 12, 4, "", "assumed", "p4d has 12, g5.xlarge 4"),
        "lost": Range(
            "spot machines lost", 0.002, 0.03, "an hour, each", "assumed", "clouds publish classes, not rates"
        ),
        "restart": Range("a restart after a loss", 60, 300, "s", "assumed", "measured without GPUs: 30 to 80 s"),
        "tick": Range("time between checkpoints", 300, 900, "s", "assumed", "checkpoint_kimg is the user's"),
        "sampling": Range(
            "sampling against training a network call", 1.5, 0.9, "x", "assumed", "no dropout, no optimizer"
        ),
        "inception": Range("Inception features, an A100", 4000, 1200, "images/s", "assumed", "not measured"),
        "fid": Range("one FID of 2,048 features", 2.2327783740001905, 2.390972981000232, "s", "measured", _HERE),
        "sums": Range("sums of a chunk of 500 images", 0.0905240660013078, 0.10675031199934892, "s", "measured", _HERE),
        "task": Range("a Ray task, many at once", 0.0030865928266636425, 0.004987442493329581, "s", "measured", _HERE),
        "a100_hour": Range(
            "an A100 for an hour",
            a100 * spot["low"],
            a100,
            "USD",
            "assumed",
            f"spot at its lowest to on-demand; cluster/prices.yaml, {prices()['date']}",
        ),
    }
