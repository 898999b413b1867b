"""What a sweep by budget found: for each budget of network evaluations the sampler to use, and what it is worth.

All that is compared here was confirmed on the same fresh seeds, so every difference is paired, across budgets too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from edm_ray.config.text import parse_yaml
from edm_ray.diffusion.samplers import Sampler, read_sampler
from edm_ray.errors import InputError
from edm_ray.search.result import REWRITE, Confirmed, SweepResult
from edm_ray.search.sampler_file import about_confirmed, as_lists
from edm_ray.search.space import in_words
from edm_ray.search.statistics import Difference, difference, gap_in_words
from edm_ray.storage.versioned import FORMAT, check_format

BEST_SAMPLERS = "best-samplers.yaml"
"""Its name in the folder of a sweep by budget, and in a model's after `sweep --export`."""
MARGIN = 1.0
"""Percent of the FID at the largest budget: what is surely not higher by more is no worse."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One budget."""

    nfe: int
    """The budget; the sampler may take fewer."""
    best: Confirmed
    """The recommended sampler."""
    words: str
    """Its settings."""
    heun: Confirmed | None
    """Heun with rho 7 at this budget; None where it cannot keep to it, or was not confirmed."""
    against_heun: Difference | None
    """FID of the recommended sampler minus Heun's; None where it is Heun itself."""
    unsearched: Confirmed | None
    """The best solver at its defaults."""
    against_unsearched: Difference | None
    """None where that is what is recommended."""
    largest: int
    """The largest budget of the sweep."""
    against_largest: Difference | None
    """FID minus that of the largest budget's sampler; None where it is that sampler."""
    margin: float
    """``MARGIN`` of the FID at the largest budget."""
    against_heun_at_largest: Difference | None = None
    """FID minus that of Heun with rho 7 at the largest budget, the paper's way; None where it was not confirmed."""
    margin_of_heun: float = 0.0
    """``MARGIN`` of that FID."""

    @property
    def no_worse(self) -> bool:
        """Whether the interval says that the FID is within the margin of that at the largest budget, or lower."""
        return self.against_largest is None or bool(self.against_largest.high <= self.margin)

    @property
    def as_good_as_heun(self) -> bool:
        """Whether the interval says so of Heun with rho 7 at the largest budget."""
        gap = self.against_heun_at_largest
        return gap is not None and bool(gap.high <= self.margin_of_heun)

    def sentence(self) -> str:
        """For people: what to use, and what the largest budget would be worth."""
        estimate = self.best.estimate
        text = f"{self.nfe} evaluations: {self.words}: FID {estimate.fid:.3f} +- {estimate.se:.3f}"
        gap, cheaper = self.against_largest, self.best.settings.nfe < self.nfe
        if gap is None and self.nfe < self.largest:
            return f"{text}; nothing better was found with {self.largest} evaluations."
        if gap is None:
            return f"{text}{f'; it takes {self.best.settings.nfe}' if cheaper else ''}."
        than = f"no worse than {self.largest} evaluations" if self.no_worse else f"against {self.largest} evaluations"
        return f"{text}; {than}: difference {gap.gap:+.3f}, {gap.low:+.3f} to {gap.high:+.3f}."


def better_elsewhere(results: Sequence[SweepResult]) -> dict[int, str]:
    """Budget -> a sentence, where the race of a larger budget has found its sampler."""
    own = {result.nfe: result.of(result.best) for result in results}
    said = {}
    for row in rows_of(results):
        mine = own.get(row.nfe)
        if mine is not None and mine.settings != row.best.settings:
            said[row.nfe] = (
                f"The search for a larger budget found a better sampler of at most {row.nfe} evaluations: {row.words}, "
                f"FID {row.best.estimate.fid:.3f} +- {row.best.estimate.se:.3f}; {BEST_SAMPLERS} has that one."
            )
    return said


Found = tuple[SweepResult, Confirmed]
"""A race, and its recommended sampler."""


def rows_of(results: Sequence[SweepResult]) -> tuple[Row, ...]:
    """The budgets that have a confirmed sampler, least first; the last of them is what the others are compared with.

    The race of a larger budget may end with a sampler of few evaluations, better by the search's seeds than what the
    smaller budgets' races found, since it began with that: then it is their sampler too.
    """
    found = [(result, best) for result in results if (best := result.of(result.best)) is not None]
    found.sort(key=lambda pair: pair[0].nfe or 0)
    return tuple(_row(result, _within(result, found[index:]), found[-1]) for index, (result, _) in enumerate(found))


def _within(result: SweepResult, found: Sequence[Found]) -> Found:
    """Of the race and those of larger budgets, the last whose sampler keeps to the race's budget."""
    keeping = [(race, best) for race, best in found if result.nfe is None or best.settings.nfe <= result.nfe]
    return keeping[-1] if keeping else found[0]


def _row(result: SweepResult, taken: Found, last: Found) -> Row:
    (race, best), (largest, top) = taken, last
    heun, unsearched, heun_there = (result.of(result.paper), result.of(result.unsearched), largest.of(largest.paper))

    def against(other: Confirmed | None) -> Difference | None:
        if other is None or other.settings == best.settings:
            return None
        return difference(best.estimate, other.estimate)

    return Row(
        nfe=result.nfe or best.settings.nfe,
        best=best,
        words=in_words(race.samplers[best.label]),
        heun=heun,
        against_heun=against(heun),
        unsearched=unsearched,
        against_unsearched=against(unsearched),
        largest=largest.nfe or top.settings.nfe,
        against_largest=against(top),
        margin=_margin(top),
        against_heun_at_largest=against(heun_there),
        margin_of_heun=0.0 if heun_there is None else _margin(heun_there),
    )


def _margin(entry: Confirmed) -> float:
    return MARGIN / 100 * max(entry.estimate.debiased, 0.0)


def summary(results: Sequence[SweepResult]) -> list[str]:
    """What was found, a sentence for each budget, and the fewest evaluations that will do.

    Raises InputError when no budget has a winner.
    """
    rows = rows_of(results)
    if not rows:
        raise InputError("the sweep has no winner: its evaluations failed; the trials tables say why")
    lines = [row.sentence() for row in rows]
    told = {row.nfe for row in rows}
    lines += [f"{each.nfe} evaluations: every evaluation failed." for each in results if each.nfe not in told]
    last, cheapest = rows[-1], next(row for row in rows if row.no_worse)
    lines += _against_the_paper(rows)
    if cheapest is not last:
        lines.append(
            f"The fewest evaluations that are no worse than {last.nfe}: {cheapest.nfe} (paired 95 % interval, margin "
            f"{MARGIN:g} %)."
        )
    elif len(rows) > 1:
        lines.append(f"No smaller budget is surely within {MARGIN:g} % of {last.nfe} evaluations.")
    lines += [f"{each.nfe} evaluations: {line}" for each in results for line in each.second_opinion()]
    spent = [str(each.nfe) for each in results if each.stopped]
    if spent:
        lines.append(
            f"The search for {' and for '.join(spent)} evaluations used all the images it was allowed; more "
            "(--budget-images) may find better samplers."
        )
    return lines


def _against_the_paper(rows: Sequence[Row]) -> list[str]:
    """The fewest evaluations that are as good as Heun's at the largest budget."""
    row = next((row for row in rows if row.as_good_as_heun), None)
    if row is None or row.nfe == row.largest or row.against_heun_at_largest is None:
        return []
    gap = row.against_heun_at_largest
    verdict = "better" if gap.high < 0 else "no worse"
    interval = f"difference {gap.gap:+.3f}, {gap.low:+.3f} to {gap.high:+.3f}"
    return [f"{row.nfe} evaluations are {verdict} than {row.largest} of Heun with rho 7: {interval}."]


COLUMNS = (
    "budget",
    "NFE",
    "sampler",
    "FID +- standard error",
    "against Heun, rho 7",
    "against the best unsearched",
    "against the largest budget",
    "against Heun at the largest budget",
)


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells below ``COLUMNS``."""
    return [
        (
            str(row.nfe),
            str(row.best.settings.nfe),
            row.words,
            f"{row.best.estimate.fid:.3f} +- {row.best.estimate.se:.3f}",
            gap_in_words(row.against_heun),
            gap_in_words(row.against_unsearched),
            gap_in_words(row.against_largest) + (", no worse" if row.against_largest and row.no_worse else ""),
            gap_in_words(row.against_heun_at_largest),
        )
        for row in rows
    ]


def best_samplers_yaml(results: Sequence[SweepResult], **source: str) -> str:
    """The sampler of every budget, and what it is worth; `sampler_at` reads one back."""
    rows = rows_of(results)
    content = {
        "format": FORMAT,
        "found_by": {"space": results[0].space, "strategy": results[0].strategy, **source},
        "samplers": [_entry(row) for row in rows],
    }
    text = yaml.safe_dump(as_lists(content), sort_keys=False)
    return "# The best sampler at each budget. Use: edm-ray generate --sampler THIS_FILE --nfe BUDGET ...\n" + text


def _entry(row: Row) -> dict[str, Any]:
    gaps = {
        "against_heun_rho_7": row.against_heun,
        "against_best_unsearched": row.against_unsearched,
        f"against_{row.largest}_evaluations": row.against_largest,
        f"against_heun_at_{row.largest}_evaluations": row.against_heun_at_largest,
    }
    told = {
        name: {"difference": _plain(gap.gap), "low": _plain(gap.low), "high": _plain(gap.high)}
        for name, gap in gaps.items()
        if gap is not None
    }
    return {
        "nfe": row.nfe,
        **about_confirmed(row.best),
        **told,
        "no_worse_than_largest": row.no_worse,
        "sampler": row.best.settings.to_dict(),
    }


def _plain(value: float) -> float:
    return round(float(value), 4)


def sampler_at(text: str | bytes, nfe: int, source: str = "sampler file") -> Sampler:
    """The sampler of a best-samplers.yaml for so many evaluations: that of the largest budget which is not above.

    Raises InputError naming what is wrong, or the budgets that there are.
    """
    content = parse_yaml(text, source)
    check_format(content.get("format", FORMAT), source, REWRITE)
    rows = content.get("samplers")
    if "sampler" in content and rows is None:
        raise InputError(f"--nfe {nfe}: {source} holds one sampler; --nfe takes a row of a {BEST_SAMPLERS}")
    if not isinstance(rows, list) or not rows or not all(_is_row(row) for row in rows):
        raise InputError(f"{source}: key 'samplers' must be a list of {{nfe: a whole number, sampler: settings}}")
    fitting = [row for row in rows if row["nfe"] <= nfe]
    if not fitting:
        has = ", ".join(str(row["nfe"]) for row in rows)
        raise InputError(f"--nfe {nfe} is not allowed: {source} has {has}; give one of these, or more")
    chosen = max(fitting, key=lambda row: row["nfe"])
    return read_sampler(chosen["sampler"], f"{source}: nfe {chosen['nfe']}")


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("nfe")) is int and isinstance(row.get("sampler"), dict)
