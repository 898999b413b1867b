"""What a sweep gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.search.by_budget import Row, rows_of
from edm_ray.search.result import Confirmed, SweepResult
from edm_ray.search.statistics import Difference


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep found, and where its report is."""

    results: tuple[SweepResult, ...]
    """Of one race; of a sweep by budget one for each budget, the least first."""
    out: str
    report: str
    """The page, OUT/report.html."""

    @property
    def result(self) -> SweepResult:
        """Of the only race, or of the largest budget."""
        return self.results[-1]

    @property
    def best(self) -> Sampler:
        """The recommended sampler: the winner, unless fresh seeds show no gain over deterministic sampling (by budget:
        over the best unsearched solver). Of a sweep by budget that of the largest."""
        return self.result.require_best().settings

    @property
    def budgets(self) -> tuple[Row, ...]:
        """Of a sweep by budget: the sampler of each, and what it is worth."""
        return rows_of(self.results) if self.result.nfe is not None else ()

    def at(self, nfe: int) -> Sampler:
        """Of a sweep by budget: the sampler for at most so many evaluations. Raises InputError where there is none."""
        fitting = [row for row in self.budgets if row.nfe <= nfe]
        if not fitting:
            known = ", ".join(str(row.nfe) for row in self.budgets) or "no budgets"
            raise InputError(f"nfe={nfe} is not allowed: this sweep has {known}")
        return fitting[-1].best.settings

    @property
    def against_deterministic(self) -> Difference | None:
        """FID of the recommended sampler minus that of deterministic sampling, paired on fresh seeds; None where it is
        deterministic sampling itself."""
        return self.result.require_best().against_deterministic

    @property
    def table(self) -> list[dict[str, Any]]:
        """The confirmed samplers, the best first (by budget: budget by budget): plain values."""
        return [
            _row(entry, result.nfe)
            for result in self.results
            for entry in sorted(result.confirmed, key=lambda e: e.estimate.debiased)
        ]


def _row(entry: Confirmed, budget: int | None) -> dict[str, Any]:
    gain = entry.against_deterministic
    by_budget = {}
    if budget is not None:
        plain = entry.against_unsearched
        by_budget = {
            "budget": budget,
            "against_unsearched": None if plain is None else plain.gap,
            "interval_unsearched": None if plain is None else (plain.low, plain.high),
        }
    return {
        "label": entry.label,
        "sampler": entry.settings.to_dict(),
        "nfe": entry.settings.nfe,
        "fid": entry.estimate.fid,
        "se": entry.estimate.se,
        "n": entry.estimate.n,
        "against_deterministic": None if gain is None else gain.gap,
        "interval": None if gain is None else (gain.low, gain.high),
        "probability_best": entry.probability_best,
        **by_budget,
    }
