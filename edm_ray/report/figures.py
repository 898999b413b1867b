"""Which figures the report of a sweep has: made from what was measured, nothing between the points is invented."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edm_ray.evaluation.fid import FidEstimate
from edm_ray.report.forest import Interval, forest
from edm_ray.report.parameters import (
    each_choice,
    each_value,
    looks_of,
    pair,
    searched,
    searched_choices,
    tells_more_than_noise,
)
from edm_ray.report.plots import ACCENT, INK, MUTED, WIDE, fid_against_churn, fid_of_all, reach, svg
from edm_ray.search.objective import front
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.result import SweepResult

MOST_PAIRS = 15
MOST_BARS = 60


@dataclass(frozen=True)
class Drawing:
    """One figure of the page."""

    id: str
    title: str
    about: str
    """What is to be seen, for those who cannot see it and as its caption."""
    svgs: tuple[str, ...]
    """Panels, set beside or below each other as the screen is wide."""


def drawings(result: SweepResult) -> list[Drawing]:
    """All figures that this sweep has something for, in the order of the page."""
    first = looks_of(result, result.first_chunks)
    names, choices = searched(first), searched_choices(first)
    found = []
    if differences := _differences(result):
        about = (
            f"The confirmed samplers against {result.plain}, on the same fresh seeds, with 95 % intervals of the "
            "paired differences: left of 0 is better."
        )
        found.append(Drawing("differences", "What the search is worth", about, (differences,)))
    if first and result.line:
        about = "S_churn alone, at every noise level, with 95 % intervals."
        found.append(Drawing("fid-churn", "FID against S_churn", about, (fid_against_churn(result),)))
    if names or choices:
        about = "Every sampler's first look, with 95 % intervals; the dashed line is deterministic sampling."
        found.append(
            Drawing(
                "fid-parameters",
                "FID against each parameter",
                about,
                tuple(
                    [each_value(result, first, name) for name in names]
                    + [each_choice(result, first, name) for name in choices]
                ),
            )
        )
    pairs = [both for both in itertools.combinations(names, 2) if tells_more_than_noise(result, first, *both)]
    if pairs := pairs[:MOST_PAIRS]:
        about = (
            "Mean debiased FID of the samplers in each cell, where any was looked at; darker is lower. Dots are the "
            "samplers, the ring is what the search found. Pairs whose cells differ by no more than noise are left out."
        )
        found.append(
            Drawing(
                "fid-pairs", "FID over pairs of parameters", about, tuple(pair(result, first, x, y) for x, y in pairs)
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


def _differences(result: SweepResult) -> str:
    """Empty where nothing was compared."""
    entries = sorted(result.confirmed, key=lambda entry: entry.estimate.debiased)
    intervals = [
        Interval(entry.label, entry.estimate, gap, ACCENT if entry.label == result.found else INK)
        for entry in entries
        if (gap := result.against_plain(entry)) is not None
    ]
    return forest(intervals, "", f"FID, percent above or below {result.plain}") if intervals else ""


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
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.tick_params(axis="y", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    looks = [look for look in looks_of(result) if look.settings.nfe > 0]
    if len({look.settings.nfe for look in looks}) < 2:
        return ""
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    for look in looks:
        colour = ACCENT if look.label in (result.found, result.cheapest) else INK
        estimate = look.estimate
        axes.errorbar(
            look.settings.nfe, estimate.debiased, yerr=reach(estimate), fmt="o", ms=4, color=colour, elinewidth=0.7
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
