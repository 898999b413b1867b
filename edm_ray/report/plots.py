"""Figures as SVG text, to be put into the page itself."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.figure import Figure

from edm_ray.diffusion.samplers import Sampler
from edm_ray.evaluation.fid import FidEstimate, interval_95
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.result import SweepResult

matplotlib.rcParams["svg.hashsalt"] = "edm_ray"
INK, ACCENT, MUTED = "#24304a", "#c2410c", "#8a94a6"
# Inches: small enough that letters stay readable when a phone shrinks them to its width.
WIDE, PANEL = (5.2, 3.4), (4.0, 3.0)


def svg(figure: Figure) -> str:
    """Of a figure whose layout is constrained: a tight box would draw it twice."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def reach(estimate: FidEstimate) -> float:
    """Half of the 95 % interval."""
    return interval_95(0.0, estimate.se, len(estimate.influence))[1]


def fid_against_churn(result: SweepResult) -> str:
    """FID of the line over S_churn alone, and of deterministic sampling, with 95 % intervals, all at one n."""
    first = [t for t in result.trials if t.evaluation.seeds == "search" and t.evaluation.chunks == result.first_chunks]
    answers = [t for t in first if t.estimate]
    line = [t for t in answers if t.evaluation.label in (*result.line, DETERMINISTIC)]
    line.sort(key=lambda t: _churn(t.evaluation.settings))
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    points = [(_churn(t.evaluation.settings), t.estimate) for t in line if t.estimate]
    axes.errorbar(
        [x for x, _ in points],
        [e.fid for _, e in points],
        yerr=[reach(e) for _, e in points],
        fmt="o-",
        color=INK,
        capsize=4,
        label="churn at every noise level, S_noise = 1",
    )
    baseline = next((e for x, e in points if x == 0), None)
    if baseline is not None:
        axes.axhline(baseline.fid, color=MUTED, linestyle="--", linewidth=1, label="deterministic")
    n = points[0][1].n if points else 0
    axes.set_xlabel("S_churn")
    axes.set_ylabel(f"FID (n={n})")
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _churn(settings: Sampler) -> float:
    """0 for a solver that takes none."""
    return float(getattr(settings, "s_churn", 0.0))


def fid_of_all(result: SweepResult) -> str:
    """First look at every sampler, sorted, with 95 % intervals."""
    first = result.first_chunks
    shown: list[tuple[str, FidEstimate]] = [
        (t.evaluation.label, t.estimate)
        for t in result.trials
        if t.estimate and t.evaluation.seeds == "search" and t.evaluation.chunks == first
    ]
    shown = sorted(shown, key=lambda item: -item[1].fid)[-80:]
    figure = Figure(figsize=(WIDE[0], 0.8 + 0.27 * len(shown)), layout="constrained")
    axes = figure.subplots()
    rows: dict[str, list[tuple[int, FidEstimate]]] = {}
    for row, (label, estimate) in enumerate(shown):
        colour = ACCENT if label == result.best else MUTED if label == DETERMINISTIC else INK
        rows.setdefault(colour, []).append((row, estimate))
    for colour, there in rows.items():
        fids, bars = [estimate.fid for _, estimate in there], [reach(estimate) for _, estimate in there]
        axes.errorbar(fids, [row for row, _ in there], xerr=bars, fmt="o", color=colour, capsize=3)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_yticks(range(len(shown)), [label for label, _ in shown], fontsize=8)
    axes.set_xlabel(f"FID (n={shown[0][1].n if shown else 0})")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)
