"""The strategies by name, and what a sweep costs at most before it starts."""

from __future__ import annotations

from typing import Any

from edm_ray.search.baselines import Asha, GridSearch, OptunaSearch, RandomSearch
from edm_ray.search.plan import SweepPlan
from edm_ray.search.race import Race
from edm_ray.search.space import Space
from edm_ray.search.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (Race, GridSearch, RandomSearch, OptunaSearch, Asha)
}


def make_strategy(space: Space, plan: SweepPlan, seed: int = 0, denoiser: Any = None) -> Strategy:
    """The strategy that the plan names. Raises InputError when its budget is too small to confirm anything."""
    return STRATEGIES[plan.strategy](space, plan, seed, denoiser)
