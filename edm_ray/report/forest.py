"""Forest plots: paired differences of FIDs with their intervals, in percent of the FID compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from edm_ray.evaluation.fid import FidEstimate
from edm_ray.report.plots import INK, WIDE, svg
from edm_ray.search.statistics import Difference


@dataclass(frozen=True)
class Interval:
    """One bar."""

    row: str
    estimate: FidEstimate
    gap: Difference
    """FID of ``estimate`` minus the other's, paired."""
    colour: str
    rival: str = ""
    """Who it is compared with, for the legend."""

    @property
    def percent(self) -> tuple[float, float, float]:
        """Low, middle, high: of the other's debiased FID."""
        scale = 100 / max(self.estimate.debiased - self.gap.gap, 1e-9)
        return scale * self.gap.low, scale * self.gap.gap, scale * self.gap.high


def forest(intervals: Sequence[Interval], ylabel: str, xlabel: str) -> str:
    """Rows in the order of their first bar, top down; several bars of a row lie below each other."""
    rows = list(dict.fromkeys(each.row for each in intervals))
    rivals = list(dict.fromkeys(each.rival for each in intervals))
    figure = Figure(figsize=(WIDE[0], 1.1 + 0.25 * len(rows) * (1 + len(rivals))), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for each in intervals:
        y = rows.index(each.row) + 0.25 * (rivals.index(each.rival) - (len(rivals) - 1) / 2)
        low, middle, high = each.percent
        label = None if each.rival in named or not each.rival else each.rival
        reach = [[middle - low], [high - middle]]
        axes.errorbar([middle], [y], xerr=reach, fmt="o", ms=4, capsize=3, color=each.colour, label=label)
        named.add(each.rival)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_ylabel(ylabel)
    axes.set_xlabel(xlabel)
    if named - {""}:
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)
