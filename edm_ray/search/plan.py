"""What a sweep is to do: the strategy, the objective, and how much it may spend."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from edm_ray.errors import InputError, nearest
from edm_ray.search.baselines import TPE, GridSearch, Halving, RandomSearch
from edm_ray.search.race import Race
from edm_ray.search.strategy import Strategy

StrategyName = Literal["race", "grid", "random", "optuna", "asha"]
STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (Race, GridSearch, RandomSearch, TPE, Halving)}
FLAT = {"num": "num_global", "points": "grid_points"}
"""Field of a strategy -> its name in the flat form, where that is another one."""
FEWEST_IMAGES = 50
"""Of a first look."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What all strategies share, and one of them. Chunks are of ``chunk_size`` images."""

    strategy: Strategy = dataclasses.field(default_factory=Race)
    chunk_size: int = 500
    """Images in a chunk."""
    confirm_chunks: int = 100
    """Fresh chunks of each sampler that is confirmed."""
    objective: tuple[str, ...] = ("fid",)
    """("fid",), or ("fid", "nfe") for the front of FID and cost."""
    within: float = 2.0
    """With objective nfe: name the cheapest sampler whose FID is within this many percent of the best."""
    budget_images: int | None = None
    """Stop at this many images, confirmation included. None: where the strategy ends."""

    def __post_init__(self) -> None:
        for name in ("chunk_size", "confirm_chunks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is not allowed: 1 or more")
        first = self.strategy.first_chunks * self.chunk_size
        if first < FEWEST_IMAGES:
            raise InputError(
                f"chunk_size={self.chunk_size} is not allowed: a first look of {first} images says nothing, it takes "
                f"{FEWEST_IMAGES} or more; give more initial_chunks (max_chunks for grid, random and optuna)"
            )
        if self.objective not in (("fid",), ("fid", "nfe")):
            raise InputError(f"objective={','.join(self.objective)} is not allowed: fid or fid,nfe")
        if not 0 <= self.within < 100:
            raise InputError(f"within={self.within} is not allowed: percent, 0 or more, below 100")


def sweep_plan(strategy: StrategyName = "race", **flat: Any) -> SweepPlan:
    """A plan from its flat form, which options and files keep: ``strategy="grid", grid_points=5, chunk_size=500``.

    Parameters of other strategies are left out. Raises InputError naming what is wrong.
    """
    if strategy not in STRATEGIES:
        close = nearest(str(strategy), STRATEGIES)
        raise InputError(f"strategy={strategy!r} is not allowed: {' or '.join(STRATEGIES)}{close}")
    common = {field.name for field in dataclasses.fields(SweepPlan)} - {"strategy"}
    known = common.union(*map(_flat_names, STRATEGIES.values()))
    for name in flat:
        if name not in known:
            raise InputError(f"{name}: no such setting of a sweep{nearest(name, known)}")
    kind = STRATEGIES[strategy]
    own = {field: flat[name] for name, field in _flat_names(kind).items() if name in flat}
    return SweepPlan(strategy=kind(**own), **{name: value for name, value in flat.items() if name in common})


def _flat_names(kind: type[Strategy]) -> dict[str, str]:
    """Name in the flat form -> field."""
    return {FLAT.get(field.name, field.name): field.name for field in dataclasses.fields(kind)}
