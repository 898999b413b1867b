"""Numbers that are not ours, each with where it is from: published by the paper, or assumed by us."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantity:
    value: float
    unit: str
    kind: str
    """measured | computed | published | assumed."""
    source: str

    def __str__(self) -> str:
        return f"{self.value:,.4g} {self.unit} ({self.kind}: {self.source})"


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
DOLLARS_AN_HOUR = {
    "V100": Quantity(value=3.06, unit="USD an hour", kind="assumed", source="a cloud's on-demand list price, 2024"),
    "A100": Quantity(value=4.10, unit="USD an hour", kind="assumed", source="a cloud's on-demand list price, 2024"),
}
