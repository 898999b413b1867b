"""Which figures the report of a sweep has: made from what was measured, nothing between the points is invented."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.report.plots import ACCENT, INK, MUTED, PANEL, WIDE, fid_against_churn, fid_of_all, svg
from edm_ray.search.result import SweepResult
from edm_ray.search.strategy import DETERMINISTIC, front

NAMES = {"s_churn": "S_churn", "s_tmin": "S_tmin", "s_tmax": "S_tmax", "s_noise": "S_noise"}
UNITS = {"s_tmin": "noise level sigma", "s_tmax": "noise level sigma", "sigma_min": "sigma", "sigma_max": "sigma"}
Array = np.ndarray[Any, Any]
MOST_PAIRS = 15
MOST_BARS = 60
CELLS = 7
"""Of a heat map, along each axis."""


@dataclass(frozen=True)
class Drawing:
    """One figure of the page."""

    id: str
    title: str
    about: str
    """What is to be seen, for those who cannot see it and as its caption."""
    svgs: tuple[str, ...]
    """Panels, set beside or below each other as the screen is wide."""


@dataclass(frozen=True)
class Look:
    label: str
    settings: SamplerSettings
    estimate: FidEstimate


def drawings(result: SweepResult) -> list[Drawing]:
    """All figures that this sweep has something for, in the order of the page."""
    first = _looks(result, result.first_chunks)
    names = searched([look.settings for look in first])
    found = []
    if first:
        about = "S_churn alone, at every noise level, with 95 % intervals."
        found.append(Drawing("fid-churn", "FID against S_churn", about, (fid_against_churn(result),)))
    if names:
        about = "Every sampler's first look, with 95 % intervals; the dashed line is deterministic sampling."
        found.append(
            Drawing(
                "fid-parameters",
                "FID against each parameter",
                about,
                tuple(_each(result, first, name) for name in names),
            )
        )
    if pairs := list(itertools.combinations(names, 2))[:MOST_PAIRS]:
        about = (
            "Mean debiased FID of the samplers in each cell, where any was looked at; darker is lower. Dots are the "
            "samplers, the ring is what the search found."
        )
        found.append(
            Drawing(
                "fid-pairs", "FID over pairs of parameters", about, tuple(_pair(result, first, x, y) for x, y in pairs)
            )
        )
    if history := _history(result):
        about = "Each line is a sampler: how far it was above the best of its round, as it was given more images."
        found.append(Drawing("race", "Race: who was looked at how long", about, (history,)))
    if result.trials:
        about = "Chunks of images that each sampler was given, on the search seeds and on the fresh ones."
        found.append(Drawing("chunks", "Chunks spent on each sampler", about, (_chunks(result),)))
    if pareto := _pareto(result):
        about = "Every sampler's longest look; the line joins those that nothing cheaper beats."
        found.append(Drawing("pareto", "FID against cost", about, (pareto,)))
    if first:
        about = "Sorted by FID, with 95 % intervals, all on the same seeds."
        found.append(Drawing("fid-all", "First look at every sampler", about, (fid_of_all(result),)))
    return found


def searched(settings: list[SamplerSettings]) -> list[str]:
    """Numeric settings that took three finite values or more."""
    names = []
    for field in dataclasses.fields(SamplerSettings):
        values = [getattr(each, field.name) for each in settings]
        numbers = {v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)}
        if len(numbers) >= 3:
            names.append(field.name)
    return names


def _looks(result: SweepResult, chunks: int | None = None) -> list[Look]:
    """On the search seeds, at so many chunks; None: each sampler's longest."""
    found: dict[str, Look] = {}
    for trial in result.trials:
        what, estimate = trial.evaluation, trial.estimate
        if estimate is None or what.seeds != "search" or (chunks is not None and what.chunks != chunks):
            continue
        if what.label not in found or estimate.n > found[what.label].estimate.n:
            found[what.label] = Look(what.label, what.settings, estimate)
    return list(found.values())


def _value(look: Look, name: str) -> float:
    value = getattr(look.settings, name)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _name(axes: Axes, set_label: Callable[[str], object], name: str) -> None:
    label = NAMES.get(name, name)
    set_label(f"{label} ({UNITS[name]})" if name in UNITS else label)


def _scale(looks: list[Look], name: str) -> dict[str, Any]:
    """Logarithmic where values lie orders of magnitude apart; linear around 0 where there is a 0 too."""
    values = [v for look in looks if math.isfinite(v := _value(look, name))]
    above = [v for v in values if v > 0]
    if len(above) < 3 or max(above) <= 30 * min(above):
        return {"value": "linear"}
    if min(values) > 0:
        return {"value": "log"}
    return {"value": "symlog", "linthresh": min(above), "linscale": 0.3}


def _each(result: SweepResult, looks: list[Look], name: str) -> str:
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    baseline = next((look.estimate.fid for look in looks if look.label == DETERMINISTIC), None)
    shown = [look for look in looks if look.label != DETERMINISTIC and math.isfinite(_value(look, name))]
    for look in shown:
        best = look.label == result.found
        axes.errorbar(
            _value(look, name),
            look.estimate.fid,
            yerr=1.96 * look.estimate.se,
            fmt="o",
            ms=6 if best else 3.5,
            capsize=2,
            elinewidth=1.4 if best else 0.6,
            color=ACCENT if best else INK,
            alpha=1.0 if best else 0.65,
            zorder=3 if best else 2,
        )
    if baseline is not None:
        axes.axhline(baseline, color=MUTED, linestyle="--", linewidth=1)
    axes.set_xscale(**_scale(shown, name))
    _name(axes, axes.set_xlabel, name)
    axes.set_ylabel(f"FID (n={looks[0].estimate.n})")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _pair(result: SweepResult, looks: list[Look], x: str, y: str) -> str:
    """Cells are means of what was measured in them; the others stay empty."""
    shown = [look for look in looks if look.label != DETERMINISTIC]
    fids = [look.estimate.debiased for look in shown]
    low, high = min(fids), float(np.quantile(fids, 0.9))
    shown = [look for look in shown if math.isfinite(_value(look, x)) and math.isfinite(_value(look, y))]
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale(**_scale(shown, x))
    axes.set_yscale(**_scale(shown, y))
    xs, ys = (np.array([_value(look, name) for look in shown]) for name in (x, y))
    columns, rows = _edges(axes.xaxis, xs), _edges(axes.yaxis, ys)
    at = (np.digitize(ys, rows[1:-1]), np.digitize(xs, columns[1:-1]))
    means = cell_means(*at, np.array([look.estimate.debiased for look in shown]))
    cells = axes.pcolormesh(columns, rows, means, cmap="viridis", vmin=low, vmax=max(high, low + 1e-9))
    axes.scatter(xs, ys, s=12, color="white", edgecolors="black", linewidths=0.7, zorder=2)
    for look in shown:
        if look.label == result.found:
            ring = {"facecolors": "none", "edgecolors": ACCENT, "linewidths": 2.5}
            axes.scatter(_value(look, x), _value(look, y), s=120, zorder=3, **ring)
    _name(axes, axes.set_xlabel, x)
    _name(axes, axes.set_ylabel, y)
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(cells, ax=axes, label=f"debiased FID (n={looks[0].estimate.n})")
    return svg(figure)


def cell_means(row: Array, column: Array, values: Array) -> np.ma.MaskedArray[Any, Any]:
    """[CELLS, CELLS]: means of the values [N] whose cell each is; cells without a value are masked."""
    sums, counts = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    np.add.at(sums, (row, column), values)
    np.add.at(counts, (row, column), 1)
    means: np.ma.MaskedArray[Any, Any] = np.ma.masked_where(counts == 0, sums / np.maximum(counts, 1))
    return means


def _edges(axis: Axis, values: Array) -> Array:
    """``CELLS`` + 1 edges, evenly spaced on the axis as it is scaled, a little wider than the values."""
    scale = axis.get_transform()
    along = scale.transform(values)
    margin = 0.03 * (along.max() - along.min()) or 0.5
    edges: Array = scale.inverted().transform(np.linspace(along.min() - margin, along.max() + margin, CELLS + 1))
    return edges


def _chunks(result: SweepResult) -> str:
    """Bars, longest-lived above."""
    spent: dict[str, dict[str, int]] = {}
    for trial in result.trials:
        what = trial.evaluation
        of = spent.setdefault(what.label, {"search": 0, "confirm": 0})
        of[what.seeds] = max(of[what.seeds], what.chunks)
    order = sorted(spent, key=lambda label: (spent[label]["search"], spent[label]["confirm"]))[-MOST_BARS:]
    figure = Figure(figsize=(WIDE[0], 1.2 + 0.24 * len(order)), layout="constrained")
    axes = figure.subplots()
    search = [spent[label]["search"] for label in order]
    axes.barh(order, search, color=[ACCENT if label == result.found else INK for label in order], label="search seeds")
    axes.barh(order, [spent[label]["confirm"] for label in order], left=search, color=MUTED, label="fresh seeds")
    axes.tick_params(axis="y", labelsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("chunks of images")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _history(result: SweepResult) -> str:
    """Empty when nothing was looked at twice."""
    rounds: dict[int, dict[str, FidEstimate]] = {}
    for trial in result.trials:
        if trial.estimate is not None and trial.evaluation.seeds == "search":
            rounds.setdefault(trial.estimate.n, {})[trial.evaluation.label] = trial.estimate
    counts = sorted(rounds)
    lived = {label for n in counts[1:] for label in rounds[n]}
    if not lived:
        return ""
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    for label in sorted({label for each in rounds.values() for label in each}):
        seen = [(n, rounds[n][label]) for n in counts if label in rounds[n]]
        gaps = [estimate.debiased - min(e.debiased for e in rounds[n].values()) for n, estimate in seen]
        colour = ACCENT if label == result.found else INK if label == DETERMINISTIC else MUTED
        heavy = label in (result.found, DETERMINISTIC)
        last = label if label in (result.found, DETERMINISTIC) else None
        axes.plot(
            [n for n, _ in seen],
            gaps,
            "o-",
            color=colour,
            linewidth=2 if heavy else 0.9,
            markersize=5 if heavy else 3,
            alpha=1 if heavy else 0.7,
            zorder=3 if heavy else 2,
            label=last,
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{n:,}" for n in counts], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("images of a setting")
    axes.set_ylabel("debiased FID above the best of the round")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _pareto(result: SweepResult) -> str:
    """Empty when every sampler cost the same."""
    looks = [look for look in _looks(result) if look.settings.nfe > 0]
    if len({look.settings.nfe for look in looks}) < 2:
        return ""
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    for look in looks:
        colour = ACCENT if look.label in (result.found, result.cheapest) else INK
        estimate = look.estimate
        axes.errorbar(
            look.settings.nfe, estimate.debiased, yerr=1.96 * estimate.se, fmt="o", ms=4, color=colour, elinewidth=0.7
        )
    by_label = {look.label: look for look in looks}
    line = front({k: v.estimate for k, v in by_label.items()}, {k: v.settings for k, v in by_label.items()})
    axes.plot(
        [by_label[label].settings.nfe for label in line],
        [by_label[label].estimate.debiased for label in line],
        color=ACCENT,
        linewidth=1.2,
        drawstyle="steps-post",
        label="nothing cheaper is better",
    )
    axes.set_xscale("log")
    ticks = sorted({look.settings.nfe for look in looks})
    axes.set_xticks(ticks[:: max(1, len(ticks) // 8)], [str(t) for t in ticks[:: max(1, len(ticks) // 8)]])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations an image (NFE)")
    axes.set_ylabel("debiased FID (longest look)")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)
