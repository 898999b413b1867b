"""Numbers that are not ours, each with where it is from: published by the paper, or assumed by us."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edm_ray.config.load import parse_yaml
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
        number = f"{self.value:,.0f}" if self.value >= 1e4 else f"{self.value:,.4g}"
        return f"{number} {self.unit} ({self.kind}: {self.source})"


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


@lru_cache(maxsize=8)
def _prices(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise InputError(f"EDM_RAY_PRICES={path}: no such file; copy {PRICES_FILE} and edit it")
    return parse_yaml(Path(path).read_text(), path)


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
