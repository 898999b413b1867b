"""The page of a sweep by budget: what was found, FID against network evaluations, a table, and a page for each budget.

Each budget's folder below the sweep's is that of a sweep of one race.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edm_ray.config.load import validate
from edm_ray.errors import IntegrityError, shortened
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.report.figures import Drawing
from edm_ray.report.forest import Interval, forest
from edm_ray.report.html import Context, render
from edm_ray.report.plots import ACCENT, INK, MUTED, WIDE, reach, svg
from edm_ray.report.saved import BUDGETS, CONTEXT, PAGE, PROGRESS, RESULT, load_report, write_page
from edm_ray.search import by_budget
from edm_ray.search.result import REWRITE, SweepResult
from edm_ray.search.statistics import Difference
from edm_ray.storage import uris
from edm_ray.storage.versioned import read_json, write_json


def folder(out: str, nfe: int) -> str:
    """Of one budget."""
    return uris.join(out, f"nfe-{nfe}")


def is_by_budget(out: str) -> bool:
    return uris.exists(uris.join(out, BUDGETS))


def save_by_budget(out: str, budgets: Sequence[int], context: Context) -> None:
    """Say which budgets a sweep has, and what its page says beside them; ``context.unfinished`` while it is run."""
    write_json(uris.join(out, BUDGETS), {"budgets": list(budgets)})
    write_json(uris.join(out, CONTEXT), dataclasses.asdict(context))


def load_by_budget(out: str) -> tuple[list[SweepResult], list[int], Context]:
    """The budgets that have ended, those that have not, and what the page says beside them.

    The pages of those that were begun are written again. Raises IntegrityError for what is
    damaged.
    """
    path, about = uris.join(out, BUDGETS), uris.join(out, CONTEXT)
    budgets = read_json(path, REWRITE).get("budgets")
    if not isinstance(budgets, list) or not all(type(nfe) is int for nfe in budgets):
        raise IntegrityError(f"{path}: budgets={shortened(budgets)} is not allowed: whole numbers; {REWRITE}")
    results, missing = [], []
    for nfe in budgets:
        if not any(uris.exists(uris.join(folder(out, nfe), name)) for name in (RESULT, PROGRESS)):
            missing.append(nfe)  # not begun
            continue
        result, context = load_report(folder(out, nfe))
        write_page(folder(out, nfe), result, context)
        if context.unfinished:
            missing.append(nfe)
        else:
            results.append(result)
    return results, missing, validate(Context, read_json(about, REWRITE), about)


def summary(results: Sequence[SweepResult], missing: Sequence[int], context: Context) -> list[str]:
    """What was found; of a sweep that has not ended what there is."""
    lines = by_budget.summary(results) if results or not context.unfinished else []
    if context.unfinished:
        which = f"budget{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        waiting = f"{which} {'are' if len(missing) > 1 else 'is'}" if missing else "the page's pictures are"
        lines.append(
            f"This sweep has not ended: {waiting} still to come. Run its command again: it resumes from its chunks."
        )
    return lines


def write_budgets_page(out: str, results: Sequence[SweepResult], missing: Sequence[int], context: Context) -> str:
    """Returns the page's path."""
    rows = by_budget.rows_of(results)
    figures = [draw(rows), draw_differences(rows)] if rows else []
    text = render(
        "budgets.html.j2",
        results=results,
        context=context,
        summary=summary(results, missing, context),
        columns=by_budget.COLUMNS,
        rows=by_budget.table(rows),
        margin=f"{by_budget.MARGIN:g}",
        figures=[(figure, Markup(figure.svgs[0])) for figure in figures],
        images=sum(result.images for result in results),
        evaluations=sum(result.evaluations for result in results),
    )
    page = uris.join(out, PAGE)
    uris.write_bytes(page, text.encode())
    return page


def draw(rows: Sequence[by_budget.Row]) -> Drawing:
    """FID against network evaluations."""
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    _line(axes, [(row.best.settings.nfe, row.best.estimate) for row in rows], ACCENT, "searched")
    plain = [(e.settings.nfe, e.estimate) for row in rows if (e := row.unsearched) is not None]
    _line(axes, plain, INK, "best unsearched solver")
    heun = [(e.settings.nfe, e.estimate) for row in rows if (e := row.heun) is not None]
    _line(axes, heun, MUTED, "Heun, rho 7")
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="clip")
    budgets = [row.nfe for row in rows]
    axes.set_xticks(budgets, [str(nfe) for nfe in budgets])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("network evaluations per image (NFE)")
    axes.set_ylabel(f"FID (n={rows[0].best.estimate.n}, fresh seeds)")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    about = (
        "Fresh seeds; the bars are 95 % intervals of each FID alone. All samplers use the same seeds, so the "
        "differences in the table are more precise than these bars suggest."
    )
    return Drawing("fid-nfe", "FID against network evaluations", about, (svg(figure),))


def draw_differences(rows: Sequence[by_budget.Row]) -> Drawing:
    """A forest plot: paired differences of every budget's sampler, in percent of the FID compared with."""
    rivals = (("Heun, rho 7", MUTED), ("best unsearched solver", INK), (f"Heun at {rows[0].largest}", ACCENT))
    intervals = [
        Interval(str(row.nfe), row.best.estimate, gap, colour, rival)
        for row in rows
        for gap, (rival, colour) in zip(_gaps(row), rivals, strict=True)
        if gap is not None
    ]
    xlabel = "FID of the sampler found, percent above or below"
    about = (
        "Paired differences on the same fresh seeds, with 95 % intervals: left of 0 the sampler found is better. The "
        "rivals are Heun with rho 7 and the best unsearched solver at the same budget, and Heun at the largest budget."
    )
    return Drawing("differences", "What the search is worth", about, (forest(intervals, "budget (NFE)", xlabel),))


def _gaps(row: by_budget.Row) -> tuple[Difference | None, ...]:
    return row.against_heun, row.against_unsearched, row.against_heun_at_largest


def _line(axes: Axes, points: Sequence[tuple[int, FidEstimate]], colour: str, label: str) -> None:
    if points:
        axes.errorbar(
            [nfe for nfe, _ in points],
            [estimate.fid for _, estimate in points],
            yerr=[reach(estimate) for _, estimate in points],
            fmt="o-",
            ms=4,
            capsize=3,
            color=colour,
            label=label,
        )
