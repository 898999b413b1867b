"""What a network has to know of its data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """Side of the square images, their channels, and how many classes they have (0: none)."""

    resolution: int
    channels: int
    num_classes: int
