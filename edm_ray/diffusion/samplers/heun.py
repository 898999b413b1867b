"""Euler and Heun with churn for any schedule and scaling, and restarts: Algorithms 1 to 3 of Karras et al. 2022.

Restarts: Xu et al., "Restart Sampling for Improving Generative Processes", NeurIPS 2023.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from edm_ray.diffusion.denoiser import AtLevel
from edm_ray.diffusion.noise import MOST_LEVELS, Path
from edm_ray.diffusion.samplers.base import Noise, Sampler
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.levels import edm_levels, rounded
from edm_ray.diffusion.samplers.values import is_real, is_whole, require

GAMMA_MAX = math.sqrt(2.0) - 1.0
BINS = "ascending (low, high, s_churn) that do not overlap, 0 <= low < high, s_churn 0 or more and finite"
RESTARTS = (
    f"(low, high, steps, times), 0 < low < high, both finite, steps a whole number from 2 to {MOST_LEVELS:,}, times "
    f"one from 1 to {MOST_LEVELS:,}"
)


@dataclass(frozen=True)
class Restart:
    """Up from time step ``index`` to the first of ``levels`` and down through the others, ``times`` times."""

    index: int
    levels: tuple[float, ...]
    """Descending, without the level of the time step itself."""
    times: int
    high: float
    """As set; the first of ``levels`` is this, rounded to what the denoiser knows."""


@dataclass(frozen=True)
class Plan:
    """What happens at each time step beyond the ODE, decided before anything is sampled."""

    levels: list[float]
    """sigma_0 > ... > sigma_{N-1}."""
    raised: list[float]
    """The level that churn goes up to at each step; that of the step where it adds no noise."""
    restarts: list[Restart]
    """Those that add noise, in the order in which they happen."""

    @property
    def noisy(self) -> bool:
        return bool(self.restarts) or self.raised != self.levels


@dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """Euler's method with churn: Algorithm 2 without its second-order correction."""

    solver = "euler"

    s_churn: float = 0.0
    """Amount of noise added over the whole run; acts up to num_steps * (sqrt(2) - 1), above it nothing changes."""
    s_tmin: float = 0.0
    """Lowest noise level at which noise is added."""
    s_tmax: float = math.inf
    """Highest noise level at which noise is added."""
    s_noise: float = 1.0
    """Standard deviation of the added noise, relative to exact."""
    churn_bins: tuple[tuple[float, float, float], ...] = ()
    """(low, high, s_churn): S_churn where low <= sigma < high, instead of s_churn, s_tmin and s_tmax."""
    gammas: tuple[float, ...] = ()
    """gamma_i of every step, each in [0, sqrt(2) - 1], instead of s_churn, s_tmin and s_tmax."""
    restarts: tuple[tuple[float, float, int, int], ...] = ()
    """(low, high, steps, times): at the time step nearest low, go up to high and back in ``steps``, ``times`` times."""

    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        """Algorithm 2. Churn at step i uses noise(i), restarts noise(i, draw=1, 2, ...); gamma = 0 asks for none."""
        plan = self.plan(D)
        t = [*map(path.sigma_inv, plan.levels), 0.0]
        for i, (now, after) in enumerate(itertools.pairwise(t)):
            draws = itertools.count(1)
            for restart in (each for each in plan.restarts if each.index == i):
                inner = [*map(path.sigma_inv, restart.levels), now]
                for _ in range(restart.times):
                    x = self._lift(x, now, inner[0], path, noise(i, draw=next(draws)))
                    for start, end in itertools.pairwise(inner):
                        x = self.step(D, x, start, end, path)
            if plan.raised[i] > plan.levels[i]:
                t_hat = path.sigma_inv(plan.raised[i])
                x, now = self._lift(x, now, t_hat, path, noise(i)), t_hat
            x = self.step(D, x, now, after, path)
        return x

    def step(self, D: AtLevel, x: torch.Tensor, start: float, end: float, path: Path) -> torch.Tensor:
        """One step of the ODE from time start to end, in either direction; x is scaled by s."""
        return ode_step(D, x, start, end, path, alpha=None)

    def _lift(self, x: torch.Tensor, low: float, high: float, path: Path, n: torch.Tensor) -> torch.Tensor:
        """Add noise to go back from time low to time high (Algorithm 2, lines 5 and 6)."""
        variance = max(path.sigma(high) ** 2 - path.sigma(low) ** 2, 0.0)
        lifted: torch.Tensor = x * (path.s(high) / path.s(low)) + n.to(x) * (
            variance**0.5 * path.s(high) * self.s_noise
        )
        return lifted

    # -- churn and restarts, decided beforehand ----------------------------------------------------------------------

    def plan(self, denoiser: Any = None) -> Plan:
        """What happens for this denoiser. Raises InputError for restarts above what it knows."""
        levels = self.noise_levels(denoiser)
        gammas = [self.gamma(level, i) for i, level in enumerate(levels)]
        lifted = rounded([level * (1 + gamma) for level, gamma in zip(levels, gammas, strict=True)], denoiser)
        raised = [
            high if gamma > 0 and high > level else level
            for level, gamma, high in zip(levels, gammas, lifted, strict=True)
        ]
        return Plan(levels, raised, self._restarts(denoiser, levels))

    def _restarts(self, denoiser: Any, levels: list[float]) -> list[Restart]:
        """On reaching the time step nearest to low, never the first; one that would not go up is left out.

        Equal ones in a row are one, done more often.
        """
        most = math.inf if denoiser is None else float(getattr(denoiser, "sigma_max", math.inf))
        restarts: list[Restart] = []
        for low, high, steps, times in self.restarts:
            require(high <= most, "restarts", self.restarts, f"high at most {most}, the model's")
            index = min(range(1, len(levels)), key=lambda i: abs(levels[i] - low))
            if high <= levels[index]:
                continue
            inner = rounded(edm_levels(levels[index], high, steps + 1, self.rho)[:-1], denoiser)
            if inner[0] > levels[index]:
                restarts.append(Restart(index, tuple(inner), times, high))
        merged: list[Restart] = []
        for each in sorted(restarts, key=lambda restart: restart.index):
            last = merged[-1] if merged else None
            if last and (last.index, last.levels, last.high) == (each.index, each.levels, each.high):
                merged[-1] = Restart(each.index, each.levels, last.times + each.times, each.high)
            else:
                merged.append(each)
        return merged

    @property
    def churn_cap(self) -> float:
        """S_churn above which nothing changes: gamma is capped at sqrt(2) - 1 a step (Algorithm 2)."""
        return self.num_steps * GAMMA_MAX

    def churn_at(self, sigma: float) -> float:
        """The S_churn that acts at a step which starts at ``sigma``, at most its cap."""
        if self.churn_bins:
            churn = next((churn for low, high, churn in self.churn_bins if low <= sigma < high), 0.0)
        else:
            churn = self.s_churn if self.s_tmin <= sigma <= self.s_tmax else 0.0
        return min(churn, self.churn_cap)

    def gamma(self, sigma: float, step: int = 0) -> float:
        """Relative increase of the noise level at a step that starts at ``sigma`` (Algorithm 2, line 4)."""
        if self.gammas:
            return self.gammas[step]
        churn = self.churn_at(sigma)
        # N g / N may round to something below g, and a capped S_churn must act as any above it.
        return GAMMA_MAX if churn == self.churn_cap else min(churn / self.num_steps, GAMMA_MAX)

    def needs_noise(self, denoiser: Any = None) -> bool:
        return self.plan(denoiser).noisy

    # -- cost and forms ----------------------------------------------------------------------------------------------

    @property
    def nfe(self) -> int:
        """All evaluations of restarts count as guided where any is."""
        extra = sum(self.evaluations * steps * times for _, _, steps, times in self.restarts)
        return super().nfe + extra + extra * any(self._guided_levels())

    def mean_steps(self, denoiser: Any = None) -> list[tuple[float, float, list[float]]]:
        """Churned steps begin at the raised noise level."""
        plan = self.plan(denoiser)
        steps: list[tuple[float, float, list[float]]] = []
        for i, (start, end) in enumerate(zip(plan.raised, plan.levels[1:], strict=False)):
            for restart in plan.restarts:
                if restart.index == i:
                    steps += [(a, b, []) for a, b in itertools.pairwise([*restart.levels, plan.levels[i]])]
            steps.append((start, end, []))
        return [step for step in steps if step[1] < step[0]]

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[Evaluation]
    ) -> torch.Tensor:
        path = self.path(D)
        a, b = path.sigma_inv(start), path.sigma_inv(end)
        return self.step(D, x * path.s(a), a, b, path) / path.s(b)

    def _acting(self, denoiser: Any) -> Self:
        """Churn and restarts as they act at the time steps.

        Time steps in a row with the same S_churn are one window; several windows are bins between time steps.
        """
        form = super()._acting(denoiser)
        plan = form.plan(denoiser)
        restarts = tuple((plan.levels[each.index], each.high, len(each.levels), each.times) for each in plan.restarts)
        return form.replace(restarts=restarts, **form._acting_churn(plan))

    def _acting_churn(self, plan: Plan) -> dict[str, Any]:
        none: dict[str, Any] = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "churn_bins": (), "gammas": ()}
        if self.gammas:
            acting = [g if up > level else 0.0 for g, up, level in zip(self.gammas, plan.raised, plan.levels)]
            return none | {"gammas": tuple(acting) if any(acting) else ()}
        runs: list[tuple[float, float, float]] = []  # (lowest level, highest level, S_churn), from high levels to low
        above = math.inf
        edges = []  # the level above each run: where its bin ends
        before = 0.0
        for level, raised in zip(plan.levels, plan.raised, strict=True):
            churn = self.churn_at(level) if raised > level else 0.0
            if churn and churn == before:
                runs[-1] = (level, *runs[-1][1:])
            elif churn:
                runs.append((level, level, churn))
                edges.append(above)
            before, above = churn, level
        if len(runs) == 1:
            low, high, churn = runs[0]
            return none | {"s_churn": churn, "s_tmin": low, "s_tmax": high}
        bins = [(low, edge, churn) for (low, _, churn), edge in zip(runs, edges, strict=True)]
        return none | {"churn_bins": tuple(reversed(bins))}

    def _acting_levels(self, denoiser: Any) -> list[float] | None:
        plan = self.plan(denoiser)
        return [*plan.levels, *plan.raised, *(level for restart in plan.restarts for level in restart.levels)]

    def _unread(self) -> set[str]:
        unread = super()._unread()
        if self.restarts:
            unread.discard("rho")  # their inner levels are warped by it
        if self.s_churn == 0:
            unread |= {"s_tmin", "s_tmax"}
        if not (self.s_churn > 0 or self.churn_bins or self.gammas or self.restarts):
            unread.add("s_noise")
        return unread

    # -- checks ------------------------------------------------------------------------------------------------------

    def _take_plain_types(self) -> None:
        super()._take_plain_types()
        bins = [(float(low), float(high), float(churn)) for low, high, churn in self._rows("churn_bins", 3, BINS)]
        object.__setattr__(self, "churn_bins", tuple(bins))
        restarts = self._rows("restarts", 4, RESTARTS)
        require(all(is_whole(n) for row in restarts for n in row[2:]), "restarts", self.restarts, RESTARTS)
        object.__setattr__(self, "restarts", tuple((float(a), float(b), int(n), int(k)) for a, b, n, k in restarts))

    def _rows(self, name: str, width: int, allowed: str) -> list[Any]:
        given = getattr(self, name)
        require(isinstance(given, (list, tuple)), name, given, allowed)
        for row in given:
            fits = isinstance(row, (list, tuple)) and len(row) == width and all(map(is_real, row))
            require(fits, name, given, allowed)
        return list(given)

    def _check(self) -> None:
        super()._check()

        def check(condition: bool, name: str, allowed: str) -> None:
            require(condition, name, getattr(self, name), allowed)

        check(0 <= self.s_churn < math.inf, "s_churn", "0 or more, finite")
        check(0 <= self.s_tmin < math.inf, "s_tmin", "0 or more, finite")
        check(self.s_tmax >= 0, "s_tmax", "0 or more, at least s_tmin; inf for no bound")
        check(self.s_tmin <= self.s_tmax, "s_tmin", f"at most s_tmax={self.s_tmax}")
        check(0 <= self.s_noise < math.inf, "s_noise", "0 or more, finite")
        edge = 0.0
        for low, high, churn in self.churn_bins:
            check(edge <= low < high and 0 <= churn < math.inf, "churn_bins", BINS)
            edge = high
        check(not (self.churn_bins and self.s_churn), "s_churn", "0 with churn_bins, which replace it")
        for low, high, steps, times in self.restarts:
            fits = 0 < low < high < math.inf and 2 <= steps <= MOST_LEVELS and 1 <= times <= MOST_LEVELS
            check(fits, "restarts", RESTARTS)
        if self.gammas:
            check(len(self.gammas) == self.num_steps, "gammas", f"{self.num_steps} numbers, one a step")
            check(all(0 <= g <= GAMMA_MAX for g in self.gammas), "gammas", "each from 0 to sqrt(2) - 1")
            check(not self.s_churn, "s_churn", "0 with gammas, which replace it")
            check(not self.churn_bins, "churn_bins", "empty with gammas, which replace them")


@dataclass(frozen=True, kw_only=True)
class Heun(Euler):
    """Algorithm 2 of Karras et al. 2022; alpha as in appendix D.2."""

    solver = "heun"
    evaluations: ClassVar[int] = 2

    alpha: float = 1.0
    """1 Heun, 1/2 midpoint, 2/3 Ralston (appendix D.2)."""

    def step(self, D: AtLevel, x: torch.Tensor, start: float, end: float, path: Path) -> torch.Tensor:
        return ode_step(D, x, start, end, path, self.alpha)

    @property
    def nfe(self) -> int:
        """The last step is an Euler step."""
        return super().nfe - 1

    def _nfe_of_guide(self) -> int:
        """Heun looks at the first level once and at each of the others twice: at the end of a step, and at the next."""
        inside = self._guided_levels()
        return super()._nfe_of_guide() - (inside[0] if inside else 0)

    def _acting_levels(self, denoiser: Any) -> list[float] | None:
        """With alpha not 1 it looks at levels between the time steps too."""
        return super()._acting_levels(denoiser) if self.alpha == 1 else None

    def _check(self) -> None:
        super()._check()
        require(0 < self.alpha < math.inf, "alpha", self.alpha, "greater than 0, finite")


def slope(D: AtLevel, x: torch.Tensor, t: float, path: Path) -> torch.Tensor:
    """dx/dt = (sigma'/sigma + s'/s) x - (sigma' s / sigma) D(x / s; sigma) for t > 0 (section 2, Algorithm 1)."""
    sigma, s, rate = path.sigma(t), path.s(t), path.sigma_deriv(t)
    denoised = D(x / s, sigma)
    return (rate / sigma + path.s_deriv(t) / s) * x - (rate * s / sigma) * denoised


def ode_step(
    D: AtLevel, x: torch.Tensor, start: float, end: float, path: Path, alpha: float | None = 1.0
) -> torch.Tensor:
    """One step of the ODE from time start to end, in either direction; alpha None is Euler (appendix D.2).

    A step to noise level 0 is an Euler step. Where alpha > 1 would look below noise level 0, alpha = 1 is used.
    """
    h = end - start
    d = slope(D, x, start, path)
    if alpha is None or path.sigma(end) == 0:
        return x + h * d
    if start + alpha * h <= 0 or path.sigma(start + alpha * h) == 0:
        alpha = 1.0
    # start + (end - start) may miss end by a bit, which would decide at the bounds of a guidance interval.
    ahead_t = end if alpha == 1 else start + alpha * h
    ahead = slope(D, x + alpha * h * d, ahead_t, path)
    return x + h * ((1 - 0.5 / alpha) * d + 0.5 / alpha * ahead)
