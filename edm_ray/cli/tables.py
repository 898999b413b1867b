"""Tables of metrics for the terminal (rich)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from edm_ray.cli.console import lines_to, without_live_line
from edm_ray.evaluation.measure import Measured, ProtocolRow, over_sets
from edm_ray.evaluation.trainings import Spread
from edm_ray.search.by_budget import Row
from edm_ray.search.statistics import Difference

PIPE_WIDTH = 120
LEFT = ("metric", "note", "model", "solver, steps")


def show(table: Table) -> None:
    """Print to standard output; as wide as it needs where that is not a terminal."""
    with without_live_line():
        stream = lines_to()
        width = None if stream.isatty() else PIPE_WIDTH
        Console(file=stream, width=width).print(table)


def number(value: float | None) -> str:
    """Three decimals as long as they mean something, otherwise four digits."""
    if value is None:
        return ""
    return f"{value:.3f}" if 1 <= abs(value) < 1000 else f"{value:.4g}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def count(value: int | None) -> str:
    return "not published" if value is None else f"{value:,}"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right")
    return table


def budgets_table(rows: Sequence[Row]) -> Table:
    """What each budget of network evaluations is worth, in 80 columns; the lines below it and the report say more."""
    columns = ("budget", "solver, steps", "FID +- s.e.", "less Heun,\nrho 7", "less the best\nunsearched")
    n = rows[0].best.estimate.n if rows else 0
    made = _table(f"n={n:,} fresh images; FID less that of others: paired 95 % intervals", *columns)
    made.pad_edge, made.collapse_padding = False, True
    for row in rows:
        settings, estimate = row.best.settings, row.best.estimate
        made.add_row(
            str(row.nfe),
            f"{settings.solver}, {settings.num_steps}",
            f"{number(estimate.fid)} +- {_digits(estimate.se)}",
            _gap(row.against_heun),
            _gap(row.against_unsearched),
        )
    return made


def _gap(gap: Difference | None) -> str:
    return "-" if gap is None else f"{_digits(gap.low, '+')} to {_digits(gap.high, '+')}"


def _digits(value: float, sign: str = "") -> str:
    """Two digits, or all before the decimal point."""
    return f"{value:{sign},.0f}" if abs(value) >= 10 else f"{value:{sign}.2g}"


def measured_table(measured: Measured, title: str) -> Table:
    """One line a metric, with its interval, both numbers of images, and what else decides it."""
    table = _table(title, "metric", "value", "95 % interval", "n", "n reference", "note")
    for row in measured.rows():
        alone = row.metric == "Inception Score"
        table.add_row(
            row.metric,
            number(row.value),
            interval(row.low, row.high),
            count(row.n),
            "-" if alone else count(row.n_reference),
            row.note,
        )
    return table


def trainings_table(models: Sequence[tuple[str, Measured]], spread: Spread, reference: str) -> Table:
    """FIDs of models of several trainings on the same seeds: intervals of sampling, and for the mean of both."""
    title = f"{len(models)} trainings, n={spread.n:,}, against {reference}"
    made = _table(title, "model", models[0][1].frechet, "95 % interval")
    for name, measured in models:
        row = measured.rows()[0]
        made.add_row(name, number(row.value), interval(row.low, row.high))
    made.add_section()
    made.add_row("mean over trainings", number(spread.mean), interval(spread.low, spread.high))
    return made


def card_rows(sets: Sequence[Measured], how: str) -> dict[str, str]:
    """Rows for a model card: metric with n and ``how`` it was measured -> value with its interval. Of several sets the
    mean, and the paper's best of them."""
    if len(sets) == 1:
        single = sets[0].rows()
        return {f"{row.metric}, n={row.n:,}, {how}": _with_interval(row.value, row.low, row.high) for row in single}
    return {
        f"{row.metric}, {len(sets)} sets of n={row.n:,}, {how}": f"{number(row.best)} the best, as in the paper; "
        f"mean {_with_interval(row.mean, row.low, row.high)}"
        for row in over_sets(sets)
    }


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    return number(value) if low is None else f"{number(value)} (95 % interval {interval(low, high)})"


def protocol_table(rows: Sequence[ProtocolRow], reference: str, num: int) -> Table:
    """Mean and interval over the sets; the paper's choice of the best of them in a column of its own."""
    title = f"{len(rows[0].values)} sets of {num:,} images against {reference}"
    table = _table(title, "metric", "mean", "95 % interval", "paper protocol", "of the sets", "n", "n reference")
    for row in rows:
        alone = row.metric == "Inception Score"
        table.add_row(
            row.metric,
            number(row.mean),
            interval(row.low, row.high),
            f"{number(row.best)} ({'min' if row.best == min(row.values) else 'max'})",
            ", ".join(number(value) for value in row.values),
            count(row.n),
            "-" if alone else count(row.n_reference),
        )
    return table
