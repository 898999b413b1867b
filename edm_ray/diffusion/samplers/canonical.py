"""The canonical form of sampler settings: one form for all settings that give the same images.

It names chunks of evaluations, so that no sampler is evaluated twice, and it is what a best-sampler.yaml holds. So it
must be a sampler itself, one that gives those images to the bit. Known to stay apart although the images are the same:
amounts of churn, and numbers of steps, that a network's grid of noise levels makes the same; alpha above 1 where every
step would look below noise level 0, so that Heun takes its place; guidance intervals with rk45 or alpha not 1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from edm_ray.diffusion.samplers.plan import Plan, plan_of
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import grid_levels, noise_levels, path_of

ALWAYS_NOISY = ("dpmpp_3m_sde", "euler_maruyama", "predictor_corrector")
"""Solvers of an SDE."""
ONLY_LEVELS = ("dpmpp_2m", "dpmpp_3m_sde", "predictor_corrector")
"""Solvers between noise levels, whatever the schedule."""


def canonical(settings: SamplerSettings, denoiser: Any) -> SamplerSettings:
    """Bounds written out, churn and restarts as they act at the time steps, what nothing reads at its default."""
    low, high = settings.sigma_range(denoiser)
    settings = dataclasses.replace(settings, sigma_min=low, sigma_max=high)
    if settings.solver == "rk45":
        settings = _with_defaults(settings, {"num_steps", "rho", "discretization"})
    _require_time_steps(settings, denoiser)
    if settings.solver in ("heun", "euler"):
        plan = plan_of(settings, denoiser)
        settings = dataclasses.replace(settings, restarts=_restarts(plan), **_churn(settings, plan))
    settings = dataclasses.replace(settings, **_guidance(settings, denoiser))
    settings = _with_defaults(settings, _unread(settings))
    return _on_the_grid(settings) if settings.discretization == "iddpm" else settings


def _require_time_steps(settings: SamplerSettings, denoiser: Any) -> None:
    """Raises InputError for settings that could not sample, so that a search meets it before it generates."""
    noise_levels(settings, denoiser)
    if settings.solver not in ONLY_LEVELS:
        path_of(settings, denoiser)


def _with_defaults(settings: SamplerSettings, names: set[str]) -> SamplerSettings:
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(settings) if f.name in names}
    return dataclasses.replace(settings, **defaults)


def _restarts(plan: Plan) -> tuple[tuple[float, float, int, int], ...]:
    return tuple((plan.levels[each.index], each.high, len(each.levels), each.times) for each in plan.restarts)


def _churn(settings: SamplerSettings, plan: Plan) -> dict[str, Any]:
    """Time steps in a row with the same S_churn are one window; several windows are bins between time steps."""
    runs: list[tuple[float, float, float]] = []  # (lowest level, highest level, S_churn), from high levels to low
    above = math.inf
    edges = []  # the level above each run: where its bin ends
    before = 0.0
    for level, raised in zip(plan.levels, plan.raised, strict=True):
        churn = settings.churn_at(level) if raised > level else 0.0
        if churn and churn == before:
            runs[-1] = (level, *runs[-1][1:])
        elif churn:
            runs.append((level, level, churn))
            edges.append(above)
        before, above = churn, level
    none: dict[str, Any] = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "churn_bins": ()}
    if len(runs) == 1:
        low, high, churn = runs[0]
        return none | {"s_churn": churn, "s_tmin": low, "s_tmax": high}
    bins = [(low, edge, churn) for (low, _, churn), edge in zip(runs, edges, strict=True)]
    return none | {"churn_bins": tuple(reversed(bins))}


def _guidance(settings: SamplerSettings, denoiser: Any) -> dict[str, Any]:
    """The interval from the lowest to the highest noise level that is guided; no guidance where none is."""
    if settings.guidance == 1 or settings.solver == "rk45" or settings.alpha != 1:
        return {}  # levels between the time steps count too, and rk45's are not known beforehand
    levels = noise_levels(settings, denoiser)
    if settings.solver in ("heun", "euler"):
        plan = plan_of(settings, denoiser)
        levels = [*plan.levels, *plan.raised, *(level for restart in plan.restarts for level in restart.levels)]
    if settings.solver not in ONLY_LEVELS:  # the denoiser gets what comes back from time
        path = path_of(settings, denoiser)
        levels = [path.sigma(path.sigma_inv(level)) for level in levels]
    inside = [level for level in levels if settings.guidance_min <= level <= settings.guidance_max]
    if not inside:
        return {"guidance": 1.0}
    return {"guidance_min": min(inside), "guidance_max": max(inside)}


def _unread(settings: SamplerSettings) -> set[str]:
    """Names of settings that do not act together with the others."""
    unread = set()
    if settings.solver in ONLY_LEVELS:
        unread.add("schedule")
    if settings.solver in ("dpmpp_2m", "dpmpp_3m_sde"):
        unread.add("scaling")
    if settings.solver != "heun":
        unread.add("alpha")
    if settings.solver != "predictor_corrector":
        unread.add("snr")
    if settings.solver != "rk45":
        unread.add("tolerance")
    if settings.discretization != "edm" and not settings.restarts:
        unread.add("rho")
    if settings.discretization != "iddpm":
        unread |= {"c_1", "c_2", "num_train_steps"}
    if settings.discretization != "vp" and (settings.schedule != "vp" or "schedule" in unread):
        unread.add("epsilon_s")
    if settings.s_churn == 0:
        unread |= {"s_tmin", "s_tmax"}
    if settings.guidance == 1:
        unread |= {"guidance_min", "guidance_max"}
    churned = settings.s_churn > 0 or settings.churn_bins
    if not (churned or settings.restarts or settings.solver in ALWAYS_NOISY):
        unread.add("s_noise")
    return unread


def _on_the_grid(settings: SamplerSettings) -> SamplerSettings:
    """The iddpm grid is cut to the range: bounds move to its first and last level, c_1 to its default if it agrees."""
    kept = grid_levels(settings, *settings.sigma_range(None))
    default = _with_defaults(settings, {"c_1"})
    if grid_levels(default, *settings.sigma_range(None)) == kept:
        settings = default
    if settings.schedule != "vp":  # its betas are solved from the bounds
        settings = dataclasses.replace(settings, sigma_min=kept[-1], sigma_max=kept[0])
    return settings
