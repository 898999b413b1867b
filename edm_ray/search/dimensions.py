"""The kinds of dimension of a tune space: a range, a grid of numbers, a choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from edm_ray.errors import InputError


class Dimension(Protocol):
    """Where one setting may lie. Shares are numbers in [0, 1]."""

    def at(self, share: float) -> Any: ...

    def clip(self, value: Any) -> Any: ...

    def features(self, value: Any) -> list[float]: ...

    def size(self, points: int | None = None) -> int | None: ...

    def values(self, points: int | None = None) -> list[Any]: ...

    def beside(self, value: Any, spacing: float) -> list[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Range:
    """[low, high] on a linear or logarithmic scale, of whole numbers or not."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"low={self.low}, high={self.high} is not allowed: finite, low < high")
        if self.scale == "log" and self.low <= 0:
            raise InputError(f"low={self.low} is not allowed on a log scale: greater than 0")
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise InputError(f"low={self.low}, high={self.high} is not allowed: whole numbers with integer: true")

    def bounds(self) -> tuple[float, ...]:
        return (self.low, self.high)

    def at(self, share: float) -> Any:
        """share -> value; whole numbers are as good as equally likely."""
        low, high = (self.low - 0.499, self.high + 0.499) if self.integer else (self.low, self.high)
        if self.scale == "log":
            value = low * (high / low) ** share
        else:
            value = low + (high - low) * share
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)

    def clip(self, value: Any) -> Any:
        value = min(max(self.low if value is None else value, self.low), self.high)
        return round(value) if self.integer else float(value)

    def features(self, value: Any) -> list[float]:
        if self.scale == "log":
            return [math.log(value / self.low) / math.log(self.high / self.low)]
        return [(value - self.low) / (self.high - self.low)]

    def size(self, points: int | None = None) -> int | None:
        whole = int(self.high - self.low) + 1 if self.integer else None
        if points is None:
            return whole
        return points if whole is None else min(points, whole)

    def values(self, points: int | None = None) -> list[Any]:
        """``points`` values at equal distance on its scale, ends included; all of them where they are fewer."""
        count = self.size(points)
        assert count is not None, "a range of numbers has no list of values"
        if self.integer and count == self.high - self.low + 1:
            return list(range(int(self.low), int(self.high) + 1))
        shares = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        return list(dict.fromkeys(self._exactly(share) for share in shares))

    def _exactly(self, share: float) -> Any:
        value = self.low * (self.high / self.low) ** share if self.scale == "log" else 0.0
        value = value if self.scale == "log" else self.low + (self.high - self.low) * share
        return round(value) if self.integer else float(value)

    def beside(self, value: Any, spacing: float) -> list[Any]:
        """Up to four values around one, ``spacing`` apart in shares."""
        here = self.features(value)[0]
        shares = [min(max(here + spacing * step, 0.0), 1.0) for step in (-2, -1, 1, 2)]
        found = dict.fromkeys(self._exactly(share) for share in shares)
        if self.integer:
            found |= dict.fromkeys(round(value) + step for step in (-1, 1) if self.low <= value + step <= self.high)
        return [other for other in found if other != value]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Numbers in ascending order; neighbours are near each other."""

    grid: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.grid or any(math.isnan(value) for value in self.grid):
            raise InputError(f"grid={list(self.grid)} is not allowed: one number or more")
        if any(a >= b for a, b in zip(self.grid, self.grid[1:])):
            raise InputError(f"grid={list(self.grid)} is not allowed: ascending numbers, each once")

    def bounds(self) -> tuple[float, ...]:
        return self.grid

    def at(self, share: float) -> Any:
        return self.grid[min(int(share * len(self.grid)), len(self.grid) - 1)]

    def clip(self, value: Any) -> Any:
        value = min(max(self.grid[0] if value is None else value, self.grid[0]), self.grid[-1])
        return min(self.grid, key=lambda entry: (0.0 if entry == value else abs(entry - value), entry))

    def features(self, value: Any) -> list[float]:
        return [self.grid.index(value) / max(len(self.grid) - 1, 1)]

    def size(self, points: int | None = None) -> int | None:
        return len(self.grid)

    def values(self, points: int | None = None) -> list[Any]:
        return list(self.grid)

    def beside(self, value: Any, spacing: float) -> list[Any]:
        """The two values on either side, or one with a spacing below a quarter."""
        here = self.grid.index(value)
        steps = (-2, -1, 1, 2) if spacing >= 0.25 else (-1, 1)
        return [self.grid[here + step] for step in steps if 0 <= here + step < len(self.grid)]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Values without an order."""

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise InputError("choices=[] is not allowed: one value or more")

    def bounds(self) -> tuple[Any, ...]:
        return self.choices

    def at(self, share: float) -> Any:
        return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]

    def clip(self, value: Any) -> Any:
        return value if value in self.choices else self.choices[0]

    def features(self, value: Any) -> list[float]:
        return [float(value == entry) for entry in self.choices]

    def size(self, points: int | None = None) -> int | None:
        return len(self.choices)

    def values(self, points: int | None = None) -> list[Any]:
        return list(self.choices)

    def beside(self, value: Any, spacing: float) -> list[Any]:
        return [other for other in self.choices if other != value]
