"""How much a sweep spends, and on what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edm_ray.errors import InputError

StrategyName = Literal["race", "grid", "random", "optuna", "asha"]


FEWEST_RACED, FEWEST_OF_FRONT = 3, 8
"""So many go on in a race whatever the doublings; the latter with objective nfe."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Counts are of settings or of chunks of ``chunk_size`` images."""

    strategy: StrategyName = "race"
    chunk_size: int = 500
    initial_chunks: int = 6
    """Of a setting's first look."""
    max_chunks: int = 96
    """Of those that are raced to the end; also of every setting of grid and random."""
    num_line: int = 5
    """Settings on the line of S_churn alone (where the space searches it)."""
    num_global: int = 24
    """race: settings spread evenly over the space. random, optuna, asha: settings tried in all."""
    num_model: int = 60
    """race: at most so many settings that a model of the FID proposes, in batches of six."""
    num_starts: int = 3
    """race: so many of a race's survivors have their neighbours looked at."""
    num_finalists: int = 20
    """race: at most so many settings enter a race; half as many after each doubling of their chunks."""
    grid_points: int = 5
    """grid: values that a range is cut into."""
    confirm_chunks: int = 100
    """Fresh chunks of each setting that is confirmed."""
    z: float = 2.5
    """A setting is dropped when it is worse than the best by so many standard errors of the paired difference."""
    tie: float = 0.003
    """Settings surely closer than this share of the FID are taken for equally good."""
    objective: tuple[str, ...] = ("fid",)
    """("fid",), or ("fid", "nfe") for the front of FID and cost."""
    within: float = 2.0
    """Percent: the cheapest setting within so much of the best FID is named (with objective nfe)."""
    budget_images: int | None = None
    """At most so many images in all, confirmation included."""

    def __post_init__(self) -> None:
        for name in ("chunk_size", "initial_chunks", "confirm_chunks", "grid_points", "num_starts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is not allowed: 1 or more")
        for name in ("num_line", "num_global", "num_model"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)} is not allowed: 0 or more")
        if self.num_finalists < 2:
            raise InputError(f"num_finalists={self.num_finalists} is not allowed: 2 or more")
        if self.max_chunks < self.initial_chunks:
            raise InputError(f"max_chunks={self.max_chunks} is not allowed: at least {self.initial_chunks}")
        if self.initial_chunks * self.chunk_size < 50:
            raise InputError("initial_chunks * chunk_size must be 50 images or more, or the first look says nothing")
        if self.z <= 0 or not math.isfinite(self.z):
            raise InputError(f"z={self.z} is not allowed: greater than 0, finite")
        if self.objective not in (("fid",), ("fid", "nfe")):
            raise InputError(f"objective={','.join(self.objective)} is not allowed: fid or fid,nfe")
        if not 0 <= self.within < 100:
            raise InputError(f"within={self.within} is not allowed: percent, 0 or more, below 100")

    def search_chunks(self, num_starts: int, num_points: int | None) -> int:
        """Upper bound of the chunks of the search: ``num_starts`` given settings, ``num_points`` of a cut space.

        race stops at its bound as at a budget (0.98 million images by default, confirmation included); a sweep commonly
        costs half of it.
        """
        given = 1 + num_starts
        if self.strategy == "race":
            first = (given + self.num_line + self.num_global + self.num_model) * self.initial_chunks
            again = first if "nfe" in self.objective else 0  # a whole front is polished
            raced = sum(settings * chunks for settings, chunks in self.race_rungs())
            return first + again + 2 * raced  # twice, since neighbours join
        if self.strategy == "grid":
            return (given + (num_points or 0)) * self.max_chunks
        if self.strategy == "asha":
            # Every rung costs about as much as the first, since a third stays and gets three times as much.
            rungs = 1 + math.ceil(math.log(self.max_chunks / self.initial_chunks, 3) - 1e-9)
            return rungs * (given + self.num_global + 3) * self.initial_chunks
        return (given + self.num_global) * self.max_chunks

    @property
    def fewest_raced(self) -> int:
        return FEWEST_OF_FRONT if "nfe" in self.objective else FEWEST_RACED

    def race_rungs(self) -> list[tuple[int, int]]:
        """Settings and further chunks of each, doubling by doubling, of one race in which nobody drops out early."""
        rungs, chunks, raced = [], self.initial_chunks, self.num_finalists
        fewest = min(self.fewest_raced, self.num_finalists)
        while chunks < self.max_chunks:
            going = min(2 * chunks, self.max_chunks)
            rungs.append((raced, going - chunks))
            chunks, raced = going, max(raced // 2, fewest)
        return rungs
