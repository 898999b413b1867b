"""What a sweep found, for people and for later commands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edm_ray.config.load import validate
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.budget import Cost, costs
from edm_ray.search.driver import Driver
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.sampler_field import SamplerField
from edm_ray.search.second import SecondOpinion
from edm_ray.search.space import in_words
from edm_ray.search.statistics import Difference, Noise, difference, interval_in_words, probability_best, undecided
from edm_ray.search.trials import TrialResult
from edm_ray.storage.versioned import check_format

FORMAT = 2
"""Of sweep.json. 2: of each estimate the influences of groups of images, instead of FIDs without them."""
REWRITE = "run the sweep's command again: it rewrites it from its chunks"
"""Of sweep.json."""


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One setting on fresh seeds that decided nothing."""

    label: str
    settings: SamplerField
    estimate: FidEstimate
    gain: tuple[float, float] | None
    """Debiased FID minus that of deterministic sampling, and the standard error of this paired difference."""
    against_deterministic: Difference | None
    against_paper: Difference | None
    """Minus that of the paper's setting, where the space names one; at a budget of evaluations that of Heun, rho 7."""
    probability_best: float
    """Of having the lowest FID among the confirmed (bootstrap of the groups they share)."""
    against_unsearched: Difference | None = None
    """At a budget of evaluations: minus that of the best unsearched solver."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The outcome of a sweep; `to_dict` is what sweep.json holds."""

    space: str
    strategy: str
    trials: tuple[TrialResult, ...]
    samplers: dict[str, dict[str, str]]
    """Label -> the settings that tell it from the others (`Space.describe`)."""
    first_chunks: int
    """Chunks at which most settings were first looked at."""
    line: tuple[str, ...]
    found: str | None
    """The winner of the search."""
    best: str | None
    """What is recommended: the winner, unless fresh seeds show no gain over ``plain``; then that."""
    paper: str | None
    """The paper's setting, where the space names one."""
    tied: tuple[str, ...]
    confirmed: tuple[Confirmed, ...]
    front: tuple[str, ...]
    """With objective nfe: those that nothing cheaper was found to beat, cheapest first."""
    cheapest: str | None
    """With objective nfe: the one of fewest evaluations within ``within`` percent of the best FID (by the search)."""
    within: float
    noise: Noise | None
    decisions: tuple[str, ...]
    stopped: str
    """That the images given were spent before the search had ended by itself; empty if it had."""
    costs: tuple[Cost, ...]
    """By stage, in the order of the stages."""
    images: int
    evaluations: int
    """Network evaluations: images times NFE of their sampler."""
    nfe: int | None = None
    """The budget of network evaluations an image, where there is one."""
    unsearched: str | None = None
    """At a budget of evaluations: the best of the solvers at their defaults, by the first look."""
    second: SecondOpinion | None = None
    """What a second reference says, where one was given."""

    @property
    def plain(self) -> str:
        """What a winner must beat: deterministic sampling, at a budget of evaluations the best unsearched solver."""
        return self.unsearched or DETERMINISTIC

    def against_plain(self, entry: Confirmed) -> Difference | None:
        """FID of one that is confirmed minus that of ``plain``; None for that itself."""
        return entry.against_unsearched if self.unsearched else entry.against_deterministic

    def of(self, label: str | None) -> Confirmed | None:
        return next((entry for entry in self.confirmed if entry.label == label), None)

    def require_best(self) -> Confirmed:
        """The winner. Raises InputError when no evaluation succeeded."""
        entry = self.of(self.best)
        if entry is None:
            raise InputError("the sweep has no winner: its evaluations failed; the trials table says why")
        return entry

    def summary(self) -> list[str]:
        """What was found, in a few sentences."""
        best, found = self.require_best(), self.of(self.found)
        assert found is not None
        tried = len({trial.evaluation.label for trial in self.trials})
        within = "" if self.nfe is None else f" of at most {self.nfe} network evaluations"
        first = (
            f"Best of {tried} samplers{within}: {in_words(self.samplers[found.label])}, "
            f"with FID {found.estimate.fid:.3f} +- {found.estimate.se:.3f} on {found.estimate.n} fresh images."
        )
        return [*self._against_plain(best, found, first), *self._more(found), *self.second_opinion()]

    def second_opinion(self) -> list[str]:
        """What the second reference says of the winner; nothing where there is none."""
        if self.second is None or self.found is None:
            return []
        words = {each.label: in_words(self.samplers[each.label]) for each in self.confirmed}
        return self.second.sentences(self.found, {**words, DETERMINISTIC: "deterministic sampling"})

    def _against_plain(self, best: Confirmed, found: Confirmed, first: str) -> list[str]:
        plain = "deterministic sampling"
        if self.unsearched is not None:
            plain = f"the best unsearched solver ({in_words(self.samplers[self.unsearched])})"
        if found.label == self.plain:
            why = "the search found nothing better" if self.unsearched else "churn did not help this model on this data"
            return [first, f"{_capital(plain)} itself is best here: {why}."]
        gain = self.against_plain(found)
        if gain is None:
            return [first, f"{_capital(plain)} could not be evaluated, so there is nothing to compare with."]
        interval = interval_in_words(gain)
        if best.label != found.label:
            return [
                first.replace("Best of", "The search found, of", 1),
                f"Fresh seeds show no gain over {plain} ({interval}), so that is what is recommended: "
                f"FID {best.estimate.fid:.3f} +- {best.estimate.se:.3f}.",
                *([undecided(gain, found.estimate.n)] if gain.low < 0 else []),
            ]
        verdict = "lower than with" if gain.high < 0 else "not clearly different from"
        told = f"That is {verdict} {plain} on the same seeds: {interval}."
        return [first, told, *([] if gain.high < 0 else [undecided(gain, found.estimate.n)])]

    def _more(self, found: Confirmed) -> list[str]:
        lines = []
        if found.against_paper is not None and self.paper != found.label:
            paper = f"the paper's setting ({self.paper})" if self.nfe is None else "Heun with rho 7 at this budget"
            lines.append(f"Against {paper}: {interval_in_words(found.against_paper)}.")
        cheapest = self.of(self.cheapest)
        if cheapest is not None and cheapest.label != found.label:
            lines.append(
                f"With {cheapest.settings.nfe} network evaluations instead of {found.settings.nfe} ({cheapest.label}): "
                f"FID {cheapest.estimate.fid:.3f} +- {cheapest.estimate.se:.3f}; chosen to be within {self.within:g} %."
            )
        if self.stopped:
            lines.append("The search used all the images it was allowed; more may find better samplers.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values; infinities as strings, since JSON has none."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return str(value) if isinstance(value, float) and not math.isfinite(value) else value

        return {"format": FORMAT, **plain(dataclasses.asdict(self))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str) -> SweepResult:
        """What `to_dict` wrote. Raises InputError naming the source and what is wrong, also of another format."""
        check_format(content.get("format", FORMAT), source, REWRITE, FORMAT)
        return validate(cls, {key: value for key, value in content.items() if key != "format"}, source)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def result_of(driver: Driver) -> SweepResult:
    """Read the result off a driver (finished or not: what there is so far)."""
    trials, search, outcome = tuple(driver.trials), driver.search, driver.outcome
    registry, log = search.registry, search.log
    unsearched = search.best_unsearched()
    confirmed = _confirmed(driver, unsearched)
    spent = costs(trials, driver.plan.chunk_size)
    result = SweepResult(
        space=search.space.name,
        strategy=driver.plan.strategy.name,
        trials=trials,
        samplers={label: search.space.describe(sampler) for label, sampler in registry.samplers.items()},
        first_chunks=log.first_chunks,
        line=tuple(log.line),
        found=outcome.best,
        best=outcome.best,
        paper=registry.paper,
        tied=outcome.tied,
        confirmed=confirmed,
        front=outcome.front,
        cheapest=outcome.cheapest,
        within=search.objective.within,
        noise=log.noise,
        decisions=tuple(log.decisions),
        stopped=log.stopped,
        costs=spent,
        images=sum(cost.images for cost in spent),
        evaluations=sum(cost.evaluations for cost in spent),
        nfe=driver.nfe,
        unsearched=unsearched,
    )
    winner = result.of(outcome.best)
    gain = None if winner is None else result.against_plain(winner)
    if gain is not None and gain.gap >= 0:
        # A rule fixed beforehand, not a choice among the confirmed: without a gain the simplest sampler is the answer.
        return dataclasses.replace(result, best=result.plain)
    return result


def _confirmed(driver: Driver, unsearched: str | None) -> tuple[Confirmed, ...]:
    """In the order of asking, each compared with the others on the same seeds."""
    registry = driver.search.registry
    estimates = {
        trial.evaluation.label: trial.estimate
        for trial in driver.trials
        if trial.evaluation.seeds == "confirm" and trial.estimate is not None
    }
    chances = probability_best(estimates, driver.search.seed)

    def against(label: str, other: str | None) -> Difference | None:
        known = other is not None and other in estimates and other != label
        return difference(estimates[label], estimates[other]) if known and other is not None else None

    entries = []
    for label, estimate in estimates.items():
        gain = against(label, DETERMINISTIC)
        entries.append(
            Confirmed(
                label=label,
                settings=registry.samplers[label],
                estimate=estimate,
                gain=None if gain is None else (gain.gap, gain.se),
                against_deterministic=gain,
                against_paper=against(label, registry.paper),
                probability_best=chances[label],
                against_unsearched=against(label, unsearched),
            )
        )
    return tuple(entries)
