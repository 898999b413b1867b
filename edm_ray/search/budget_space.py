"""A tune space at a budget of network evaluations: the number of steps of its samplers follows from the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edm_ray.diffusion.noise import MOST_LEVELS
from edm_ray.diffusion.samplers import SOLVERS, Sampler, sampler
from edm_ray.diffusion.samplers.base import settings as settings_of
from edm_ray.errors import InputError
from edm_ray.search.levels import stretched
from edm_ray.search.space import Point, Space

HEUN = "heun"
"""Heun with rho 7, the paper's own: every budget is compared with it."""
FEWEST_STEPS = 2
MOST_TRIED = 64
"""Budgets above one that is refused, when the least that can be met is looked for."""


@dataclass(frozen=True, kw_only=True)
class BudgetSpace(Space):
    """A space whose samplers take as many steps as the budget pays for."""

    budget: int
    """At most so many network evaluations an image."""
    solvers: tuple[str, ...] = ()
    """Starts that are solvers at their defaults."""

    @property
    def nfe(self) -> int | None:
        return self.budget

    @property
    def unsearched(self) -> tuple[str, ...]:
        return self.solvers

    def settings(self, point: Point) -> Sampler:
        """As `Space.settings`, with the most steps that the budget pays for.

        Explicit sigmas and gammas have their own number of steps. Raises InputError where the budget pays for fewer
        than two steps, or for fewer than the lists or the order need.
        """
        plain, fixed = super().settings, self._steps_of_lists(point)
        if not fixed:
            return fitted(lambda count: plain({**point, "num_steps": count}), self.budget)
        made = plain({**point, "num_steps": fixed})
        _require_known(made)
        if made.nfe > self.budget:
            raise InputError(f"{self.name}: {fixed} steps take {made.nfe} evaluations, the budget is {self.budget}")
        return made

    def starting_with(self, label: str, found: Sampler) -> BudgetSpace:
        """With what was found at a smaller budget as starts: as it is, and with the steps of this budget."""
        return self.with_starts({label: found, f"{label}, more steps": _with_more_steps(found, self.budget)})

    def with_starts(self, more: Mapping[str, Sampler]) -> BudgetSpace:
        """With these starts too."""
        return dataclasses.replace(self, starts={**self.starts, **more})

    def _steps_of_lists(self, point: Point) -> int:
        """The number of steps that explicit sigmas or gammas have; 0 where there are none."""
        flat = {**self.sampler.to_dict(), **point}
        own = {each.name for each in settings_of(SOLVERS[flat["solver"]])}
        return next((len(flat[name]) for name in ("sigmas", "gammas") if name in own and flat.get(name)), 0)


def at_budget(space: Space, nfe: int) -> BudgetSpace:
    """The space at a budget, with its solvers at their defaults and Heun with rho 7 as starts.

    Starts of the space take as many steps as the budget pays for; those that it does not pay for are left out. Raises
    InputError for a space that searches num_steps, and for a budget that no solver meets.
    """
    if "num_steps" in space.search:
        raise InputError(f"{space.name}: search.num_steps is not allowed with --nfe, which chooses the number of steps")
    plain = _unsearched(space, nfe)
    base = _fit(space.sampler, nfe) or next(iter(plain.values()), None)
    if base is None:
        raise InputError(f"--nfe {nfe} is not allowed: {_least(space, nfe)}")
    starts = dict(plain)
    for label, given in space.starts.items():
        made = _fit(given, nfe)
        if made is not None and made not in starts.values():
            starts[f"{label} (start)" if label in starts else label] = made
    return BudgetSpace(
        name=space.name,
        about=space.about,
        sampler=base,
        search=space.search,
        starts=starts,
        paper=HEUN if HEUN in plain else None,
        budget=nfe,
        solvers=tuple(plain),
    )


def fitted(make: Callable[[int], Sampler], nfe: int) -> Sampler:
    """The sampler of the most steps that cost no more than ``nfe`` evaluations. make: number of steps -> sampler.

    Raises InputError when two steps cost more, when nobody knows what a step costs, or what ``make`` raises.
    """
    count = min(nfe + 1, MOST_LEVELS)  # with an analytic first step, one evaluation a step
    while count >= FEWEST_STEPS:
        made = make(count)
        _require_known(made)
        if made.nfe <= nfe:
            return made
        # At least what a step costs, so that no number of steps within the budget is passed over.
        most = -(-made.nfe // count) * (1 if made.guidance == 1 else 2)
        count -= max(1, (made.nfe - nfe) // most)
    raise InputError(f"two steps take more than {nfe} network evaluations")


def _require_known(made: Sampler) -> None:
    if not made.nfe:
        raise InputError(f"solver {made.solver} takes as many network evaluations as it needs and keeps to no budget")


def _fit(given: Sampler, nfe: int) -> Sampler | None:
    """As many steps as the budget pays for; None where it pays for none. Lists keep their number of steps."""
    lists = given.sigmas or getattr(given, "gammas", ())
    try:
        return fitted(lambda count: given.replace(num_steps=len(lists) or count), nfe)
    except InputError:
        return None


def _with_more_steps(given: Sampler, nfe: int) -> Sampler:
    """As many steps as the budget pays for; explicit noise levels are stretched over them."""
    lists_of_steps = bool(getattr(given, "gammas", ()))
    if not given.sigmas or lists_of_steps:
        return _fit(given, nfe) or given

    return fitted(lambda count: given.replace(sigmas=tuple(stretched(given.sigmas, count)), num_steps=count), nfe)


def _unsearched(space: Space, nfe: int) -> dict[str, Sampler]:
    """Heun and the solvers of the space at their defaults, but guided as the space's own sampler is."""
    searched = space.search.get("solver")
    names = [HEUN, *(searched.bounds() if searched is not None else [space.sampler.solver])]
    guidance = {name: getattr(space.sampler, name) for name in ("guidance", "guidance_min", "guidance_max")}
    made = {str(name): _fit(sampler(str(name), **guidance), nfe) for name in dict.fromkeys(names)}
    return {name: each for name, each in made.items() if each is not None}


def _least(space: Space, nfe: int) -> str:
    """What the space's solvers take at least."""
    for more in range(max(nfe, 0) + 1, max(nfe, 0) + MOST_TRIED):
        if _fit(space.sampler, more) is not None or _unsearched(space, more):
            return f"the solvers of {space.name} take {more} network evaluations or more"
    return f"no solver of {space.name} keeps to a budget"
