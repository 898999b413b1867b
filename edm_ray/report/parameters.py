"""FID against each parameter and over pairs of them: from what was measured, nothing between the points is invented."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from edm_ray.diffusion.samplers import Sampler, setting_names
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.report.plots import ACCENT, INK, MUTED, PANEL, reach, svg
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.result import SweepResult
from edm_ray.search.space import IN_PAPER, text_of

UNITS = {"s_tmin": "noise level sigma", "s_tmax": "noise level sigma", "sigma_min": "sigma", "sigma_max": "sigma"}
Array = np.ndarray[Any, Any]
CELLS = 7
"""Of a heat map, along each axis."""
MOST_CHOICES = 8


@dataclass(frozen=True)
class Look:
    label: str
    settings: Sampler
    estimate: FidEstimate

    @property
    def flat(self) -> dict[str, Any]:
        return self.settings.to_dict()


def searched(looks: list[Look]) -> list[str]:
    """Numeric settings that took three finite values or more; ``churn_bins.0`` is S_churn in the first bin."""
    names = setting_names(look.settings for look in looks)
    names += [
        f"churn_bins.{i}" for i in range(max((len(look.flat.get("churn_bins", ())) for look in looks), default=0))
    ]
    return [name for name in names if len({v for look in looks if math.isfinite(v := _value(look, name))}) >= 3]


def searched_choices(looks: list[Look]) -> list[str]:
    """Settings that are no numbers and took few values, two or more."""
    names = [name for name in setting_names(look.settings for look in looks) if name != "churn_bins"]
    return [name for name in names if 2 <= len({_choice(look, name) for look in looks} - {""}) <= MOST_CHOICES]


def looks_of(result: SweepResult, chunks: int | None = None) -> list[Look]:
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
    """Not a number where the setting is none, or the solver has no such setting."""
    stem, _, index = name.partition(".")
    value = look.flat.get(stem)
    if index:
        return float(value[int(index)][2]) if value and int(index) < len(value) else math.nan
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _choice(look: Look, name: str) -> str:
    """Empty where the setting is a number, or none."""
    value = look.flat.get(name)
    return text_of(value) if isinstance(value, (tuple, list, str, bool)) else ""


def _no_minor_labels(axes: Axes) -> None:
    """They run into each other on logarithmic scales of less than a few decades."""
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, set_label: Callable[[str], object], name: str) -> None:
    label = IN_PAPER.get(name, name)
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


def each_value(result: SweepResult, looks: list[Look], name: str) -> str:
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    baseline = next((look.estimate.fid for look in looks if look.label == DETERMINISTIC), None)
    shown = [look for look in looks if look.label != DETERMINISTIC and math.isfinite(_value(look, name))]
    others, best = ([look for look in shown if (look.label == result.found) == is_best] for is_best in (False, True))
    _marks(axes, [_value(look, name) for look in others], others, INK, alpha=0.65)
    _marks(axes, [_value(look, name) for look in best], best, best=True)
    if baseline is not None:
        axes.axhline(baseline, color=MUTED, linestyle="--", linewidth=1)
    axes.set_xscale(**_scale(shown, name))
    _no_minor_labels(axes)
    _name(axes, axes.set_xlabel, name)
    axes.set_ylabel(f"FID (n={looks[0].estimate.n})")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _marks(
    axes: Axes,
    where: Sequence[float],
    looks: Sequence[Look],
    color: str = ACCENT,
    alpha: float = 1.0,
    best: bool = False,
) -> None:
    """FIDs of samplers with their intervals; the best stands out."""
    axes.errorbar(
        where,
        [look.estimate.fid for look in looks],
        yerr=[reach(look.estimate) for look in looks],
        fmt="o",
        ms=6 if best else 3.5,
        capsize=2,
        elinewidth=1.4 if best else 0.6,
        color=color,
        alpha=alpha,
        zorder=3 if best else 2,
    )


def each_choice(result: SweepResult, looks: list[Look], name: str) -> str:
    """Samplers above the choice they made, side by side in the order of their FID."""
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    choices = sorted({_choice(look, name) for look in looks} - {""})
    marks: dict[str, list[tuple[float, Look]]] = {}
    for place, choice in enumerate(choices):
        there = sorted((look for look in looks if _choice(look, name) == choice), key=lambda look: look.estimate.fid)
        for number, look in enumerate(there):
            where = place + 0.6 * (number + 0.5) / len(there) - 0.3
            colour = ACCENT if look.label == result.found else MUTED if look.label == DETERMINISTIC else INK
            marks.setdefault(colour, []).append((where, look))
    for colour, placed in marks.items():
        _marks(axes, [at for at, _ in placed], [look for _, look in placed], colour, best=colour == ACCENT)
    axes.set_xticks(range(len(choices)), choices, fontsize=8)
    _name(axes, axes.set_xlabel, name)
    axes.set_ylabel(f"FID (n={looks[0].estimate.n})")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def tells_more_than_noise(result: SweepResult, looks: list[Look], x: str, y: str) -> bool:
    """Whether the cells of two settings differ by more than noise makes them: their means have twice the spread that
    the standard error of a paired difference alone would give them."""
    shown = [look for look in looks if look.label != DETERMINISTIC]
    shown = [look for look in shown if math.isfinite(_value(look, x)) and math.isfinite(_value(look, y))]
    if result.noise is None or len(shown) < 3:
        return False
    cells: dict[tuple[int, int], list[float]] = {}
    places = [_places(np.array([_value(look, name) for look in shown]), _scale(shown, name)) for name in (x, y)]
    for look, *cell in zip(shown, *places, strict=True):
        cells.setdefault((int(cell[0]), int(cell[1])), []).append(look.estimate.debiased)
    means = [float(np.mean(values)) for values in cells.values()]
    by_noise = result.noise.paired_se * math.sqrt(float(np.mean([1 / len(values) for values in cells.values()])))
    return len(means) > 1 and float(np.std(means)) > 2 * by_noise


def _places(values: Array, scale: dict[str, Any]) -> Array:
    """The cell of each value, along one axis."""
    axis = Figure().subplots()
    axis.set_xscale(**scale)
    edges = _edges(axis.xaxis, values)
    found: Array = np.digitize(values, edges[1:-1])
    return found


def pair(result: SweepResult, looks: list[Look], x: str, y: str) -> str:
    """Cells are means of what was measured in them; the others stay empty."""
    shown = [look for look in looks if look.label != DETERMINISTIC]
    fids = [look.estimate.debiased for look in shown]
    low, high = min(fids), float(np.quantile(fids, 0.9))
    shown = [look for look in shown if math.isfinite(_value(look, x)) and math.isfinite(_value(look, y))]
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale(**_scale(shown, x))
    axes.set_yscale(**_scale(shown, y))
    _no_minor_labels(axes)
    xs, ys = (np.array([_value(look, name) for look in shown]) for name in (x, y))
    columns, rows = _edges(axes.xaxis, xs), _edges(axes.yaxis, ys)
    at = (np.digitize(ys, rows[1:-1]), np.digitize(xs, columns[1:-1]))
    means = cell_means(*at, np.array([look.estimate.debiased for look in shown]))
    cells = axes.pcolormesh(columns, rows, means, cmap="viridis", vmin=low, vmax=max(high, low + 1e-9))
    axes.scatter(xs, ys, s=12, color="white", edgecolors="black", linewidths=0.7, zorder=2)
    for look in shown:
        if look.label == result.found:
            at_found = (_value(look, x), _value(look, y))
            axes.scatter(*at_found, s=120, zorder=3, facecolors="none", edgecolors=ACCENT, linewidths=2.5)
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
