"""What a sweep found, for people and for later commands."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import yaml

from edm_ray.config.load import parse_yaml
from edm_ray.diffusion.samplers import Euler, Sampler, read_sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.ledger import Cost, costs
from edm_ray.search.sampler_field import SamplerField
from edm_ray.search.statistics import Difference, Noise, difference, probability_best
from edm_ray.search.strategy import DETERMINISTIC, Answer, Strategy


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
    """Minus that of the paper's setting, where the space names one."""
    probability_best: float
    """Of having the lowest FID among the confirmed (bootstrap of the groups they share)."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The outcome of a sweep; `to_dict` is what sweep.json holds."""

    space: str
    strategy: str
    trials: tuple[Answer, ...]
    first_chunks: int
    """Chunks at which most settings were first looked at."""
    line: tuple[str, ...]
    found: str | None
    """The winner of the search."""
    best: str | None
    """What is recommended: the winner, unless fresh seeds show no gain over deterministic sampling; then that."""
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
    """Why the search ended early; empty if it did not."""
    costs: tuple[Cost, ...]
    """By stage, in the order of the stages."""
    images: int
    evaluations: int
    """Network evaluations: images times NFE of their sampler."""

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
        tried, chosen, n = len({trial.evaluation.label for trial in self.trials}), found.settings, found.estimate.n
        first = (
            f"Best of {tried} samplers: {_churn_text(chosen)}, "
            f"with FID {found.estimate.fid:.3f} +- {found.estimate.se:.3f} on {n} fresh images."
        )
        return [*self._against_deterministic(best, found, first), *self._more(found)]

    def _against_deterministic(self, best: Confirmed, found: Confirmed, first: str) -> list[str]:
        if found.label == DETERMINISTIC:
            return [first, "Deterministic sampling itself is best here: churn did not help this model on this data."]
        gain = found.against_deterministic
        if gain is None:
            return [first, "Deterministic sampling could not be evaluated, so there is nothing to compare with."]
        interval = _interval(gain)
        if best.label != found.label:
            return [
                first.replace("Best of", "The search found, of", 1),
                f"Fresh seeds show no gain over deterministic sampling ({interval}), so that is what is recommended: "
                f"FID {best.estimate.fid:.3f} +- {best.estimate.se:.3f}.",
            ]
        verdict = "lower" if gain.high < 0 else "not clearly different"
        return [first, f"That is {verdict} against deterministic sampling on the same seeds: {interval}."]

    def _more(self, found: Confirmed) -> list[str]:
        lines = []
        if found.against_paper is not None and self.paper != found.label:
            lines.append(f"Against the paper's setting ({self.paper}): {_interval(found.against_paper)}.")
        cheapest = self.of(self.cheapest)
        if cheapest is not None and cheapest.label != found.label:
            lines.append(
                f"With {cheapest.settings.nfe} network evaluations instead of {found.settings.nfe} ({cheapest.label}): "
                f"FID {cheapest.estimate.fid:.3f} +- {cheapest.estimate.se:.3f}; chosen to be within {self.within:g} %."
            )
        if self.stopped:
            lines.append(f"The search ended early: {self.stopped}.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values; infinities as strings, since JSON has none."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return str(value) if isinstance(value, float) and not math.isfinite(value) else value

        content: dict[str, Any] = plain(dataclasses.asdict(self))
        return content


def _churn_text(chosen: Sampler) -> str:
    if not isinstance(chosen, Euler):
        return str(chosen)
    return (
        f"S_churn {chosen.s_churn:.3g}, S_tmin {chosen.s_tmin:.3g}, S_tmax {chosen.s_tmax:.3g}, "
        f"S_noise {chosen.s_noise:.4g}"
    )


def _interval(gain: Difference) -> str:
    return f"difference {gain.gap:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}"


def result_of(strategy: Strategy) -> SweepResult:
    """Read the result off a strategy (finished or not: what there is so far)."""
    trials = tuple(strategy.trials)
    confirmed = _confirmed(strategy)
    best = strategy.best
    winner = next((entry for entry in confirmed if entry.label == best), None)
    if winner is not None and winner.gain is not None and winner.gain[0] >= 0:
        # A rule fixed beforehand, not a choice among the confirmed: without a gain the simplest sampler is the answer.
        best = DETERMINISTIC
    ledger = costs(trials, strategy.plan.chunk_size)
    return SweepResult(
        space=strategy.space.name,
        strategy=strategy.name,
        trials=trials,
        first_chunks=strategy.first_chunks,
        line=tuple(strategy.line),
        found=strategy.best,
        best=best,
        paper=strategy.paper,
        tied=tuple(strategy.tied),
        confirmed=tuple(confirmed),
        front=tuple(strategy.front),
        cheapest=strategy.cheapest,
        within=strategy.plan.within,
        noise=strategy.noise,
        decisions=tuple(strategy.decisions),
        stopped=strategy.stopped,
        costs=ledger,
        images=sum(cost.images for cost in ledger),
        evaluations=sum(cost.evaluations for cost in ledger),
    )


def _confirmed(strategy: Strategy) -> list[Confirmed]:
    answers = {
        trial.evaluation.label: trial.estimate
        for trial in strategy.trials
        if trial.evaluation.seeds == "confirm" and trial.estimate is not None
    }
    chances = probability_best(answers, strategy.seed)

    def against(label: str, other: str | None) -> Difference | None:
        known = other in answers and other is not None and other != label
        return difference(answers[label], answers[other]) if known and other is not None else None

    entries = []
    for label, estimate in answers.items():
        gain = against(label, DETERMINISTIC)
        entries.append(
            Confirmed(
                label=label,
                settings=strategy.settings[label],
                estimate=estimate,
                gain=None if gain is None else (gain.gap, gain.se),
                against_deterministic=gain,
                against_paper=against(label, strategy.paper),
                probability_best=chances[label],
            )
        )
    return entries


def best_sampler_yaml(result: SweepResult, **source: str) -> str:
    """The winner's settings, where they come from, and alternatives; `settings_from_yaml` reads the winner back."""
    best = result.require_best()
    content: dict[str, Any] = {
        "sampler": best.settings.to_dict(),
        "found_by": {"space": result.space, "strategy": result.strategy, **source, **_about(best)},
    }
    others = [entry for entry in result.confirmed if entry.label in (*result.front, result.cheapest)]
    others = sorted((entry for entry in others if entry.label != best.label), key=lambda entry: entry.settings.nfe)
    if others:
        content["alternatives"] = [
            {
                "label": entry.label,
                "nfe": entry.settings.nfe,
                "cheapest_within_percent": result.within if entry.label == result.cheapest else None,
                **_about(entry),
                "sampler": entry.settings.to_dict(),
            }
            for entry in others
        ]
    text = yaml.safe_dump(_lists(content), sort_keys=False)
    return "# The best sampler a sweep found. Use: edm-ray generate --sampler THIS_FILE ...\n" + text


def _lists(value: Any) -> Any:
    """YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _about(entry: Confirmed) -> dict[str, Any]:
    estimate = entry.estimate
    return {
        "extractor": estimate.extractor,
        "reference": estimate.reference,
        "n": estimate.n,
        "fid": round(float(estimate.fid), 4),
        "standard_error": round(float(estimate.se), 4),
    }


def settings_from_yaml(text: str, source: str = "sampler file") -> Sampler:
    """Settings of a best-sampler.yaml. Raises InputError naming what is wrong."""
    content = parse_yaml(text, source)
    if not isinstance(content.get("sampler"), dict):
        raise InputError(f"{source}: key 'sampler' with the settings is missing")
    return read_sampler(content["sampler"], source)
