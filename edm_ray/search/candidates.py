"""Stage 0 of a search at a budget: noise levels that the solvers' own local errors on trajectories ask for.

They are starts of the race, no more: on small models plain rho 7 often has the lower FID, since FID can gain from
errors that bring samples nearer to the data (`research/leaderboard`).
"""

from __future__ import annotations

import numpy as np

from edm_ray.diffusion.analysis.level_choice import Aim, best_levels, can_choose, gaussian_weights
from edm_ray.diffusion.analysis.trajectories import Trajectories
from edm_ray.diffusion.samplers import Sampler
from edm_ray.search.budget_space import BudgetSpace
from edm_ray.search.levels import with_levels

BEST = 2
"""Solvers whose levels are looked at: those that are to make the least errors."""
MOST_CANDIDATES = 2 * BEST + 1
MOST_STEPS = 20
"""With more, levels matter less, and the search for them takes longer."""


def wants_candidates(space: BudgetSpace) -> bool:
    """Whether a space has solvers whose levels can be chosen, at a budget of few steps."""
    return bool(_solvers(space))


def candidates(space: BudgetSpace, trajectories: Trajectories) -> dict[str, Sampler]:
    """Label -> sampler: the best levels of the solvers that are to make the least errors, also with an analytic first
    step where the space searches it, and equal errors for the best of them."""
    if not np.isfinite(trajectories.products).all():
        return {}
    weights = gaussian_weights(trajectories)
    found: dict[str, Sampler] = {}

    def choose(sampler: Sampler, label: str, aim: Aim = "sum") -> float:
        levels, error = best_levels(trajectories, sampler, sampler.num_steps, weights, aim)
        made = with_levels(sampler, levels)
        assert made is not None
        found[label] = made
        return error

    solvers = _solvers(space)
    errors = {label: choose(sampler, label) for label, sampler in solvers.items()}
    best = sorted(errors, key=errors.__getitem__)[:BEST]
    for label in best:
        sampler = solvers[label]
        if "afs" in space.search and sampler.num_steps < len(trajectories.levels):
            choose(sampler.replace(num_steps=sampler.num_steps + 1, afs=True), f"{label}, afs")
    choose(solvers[best[0]], f"{best[0]}, equal errors", "largest")
    wanted = (label for label in found if label.split(",")[0] in best)
    return {f"levels of {label}": found[label] for label in wanted}


def _solvers(space: BudgetSpace) -> dict[str, Sampler]:
    """Of the space's unsearched solvers those whose levels can be chosen."""
    if any(name.startswith("guidance") for name in space.search):
        return {}
    return {
        name: sampler
        for name in space.unsearched
        if can_choose(sampler := space.starts[name]) and 2 <= sampler.num_steps <= MOST_STEPS
    }
