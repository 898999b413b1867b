"""Tune spaces: which sampler settings a sweep may try, as data (`tune_spaces/*.yaml`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm_ray.config.load import configure, merge, parse_yaml, validate
from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.errors import InputError

Point = Mapping[str, float]
"""Value of each dimension; churn as a fraction of its cap."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One searched setting: [low, high] on a linear or logarithmic scale."""

    low: float
    high: float
    scale: str = "linear"
    """linear or log."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"low={self.low}, high={self.high} is not allowed: finite, low < high")
        if self.scale not in ("linear", "log"):
            raise InputError(f"scale={self.scale!r} is not allowed: linear or log")
        if self.scale == "log" and self.low <= 0:
            raise InputError(f"low={self.low} is not allowed on a log scale: greater than 0")

    def at(self, share: float) -> float:
        """share in [0, 1] -> value."""
        if self.scale == "log":
            return float(self.low * (self.high / self.low) ** share)
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sweep searches."""

    name: str
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    """Settings that are not searched; without churn: this is the deterministic baseline."""
    churn_fraction: Dimension = field(default_factory=lambda: Dimension(low=0.0, high=1.0))
    """S_churn as a fraction of num_steps * (sqrt(2) - 1), above which it changes nothing."""
    s_tmin: Dimension = field(default_factory=lambda: Dimension(low=0.01, high=1.0, scale="log"))
    s_tmax: Dimension = field(default_factory=lambda: Dimension(low=1.0, high=80.0, scale="log"))
    s_noise: Dimension = field(default_factory=lambda: Dimension(low=1.0, high=1.01))
    starts: dict[str, SamplerSettings] = field(default_factory=dict)
    """Named settings to evaluate first, such as those of the paper."""

    def settings(self, point: Point) -> SamplerSettings:
        """A point -> sampler settings."""
        values: dict[str, Any] = {key: value for key, value in point.items() if key != "churn_fraction"}
        return dataclasses.replace(self.sampler, s_churn=point["churn_fraction"] * self.sampler.churn_cap, **values)

    def at(self, shares: tuple[float, float, float, float]) -> SamplerSettings:
        """Shares in [0, 1] of (churn fraction, s_tmin, s_tmax, s_noise) -> settings."""
        names = ("churn_fraction", "s_tmin", "s_tmax", "s_noise")
        return self.settings({name: getattr(self, name).at(share) for name, share in zip(names, shares, strict=True)})


def load_space(path: str) -> Space:
    """Read a tune space. Raises InputError naming the file, the key, what was got and what is allowed."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such tune space; the repository has some in tune_spaces/")
    given = parse_yaml(Path(path).read_text(), path)
    if not given.get("name"):
        raise InputError(f"{path}: key 'name' is missing")
    starts = given.get("starts") or {}
    if not isinstance(starts, dict) or not all(isinstance(value, dict) for value in starts.values()):
        raise InputError(f"{path}: starts must be a mapping of names to sampler settings")
    known = dataclasses.asdict(Space(name=str(given["name"])))
    rest = {key: value for key, value in given.items() if key != "starts"}
    space = validate(Space, {**merge({**known, "name": ""}, rest, path), "starts": {}}, path)
    if space.sampler.s_churn != 0:
        raise InputError(f"{path}: sampler.s_churn={space.sampler.s_churn} is not allowed: 0, it is what is searched")
    if not space.s_tmin.high <= space.s_tmax.low:
        raise InputError(
            f"{path}: s_tmin.high={space.s_tmin.high} is not allowed: at most s_tmax.low={space.s_tmax.low}"
        )
    named = {
        str(name): configure(space.sampler, None, [f"{key}={value}" for key, value in changes.items()])
        for name, changes in starts.items()
    }
    return dataclasses.replace(space, starts=named)
