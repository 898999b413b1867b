"""What a sweep found, for people and for later commands."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import yaml

from edm_ray.config.load import merge, parse_yaml, validate
from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.controller import DETERMINISTIC, Answer, SweepController


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One setting on fresh seeds that decided nothing."""

    label: str
    settings: SamplerSettings
    estimate: FidEstimate
    gain: tuple[float, float] | None
    """Debiased FID minus that of deterministic sampling, and the standard error of this paired difference."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The outcome of a sweep; `to_dict` is what sweep.json holds."""

    space: str
    trials: tuple[Answer, ...]
    line: tuple[str, ...]
    found: str | None
    """The winner of the search."""
    best: str | None
    """What is recommended: the winner, unless fresh seeds show no gain over deterministic sampling; then that."""
    tied: tuple[str, ...]
    confirmed: tuple[Confirmed, ...]
    decisions: tuple[str, ...]
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
        """What was found, in two sentences."""
        best, found = self.require_best(), self.of(self.found)
        assert found is not None
        tried, chosen, n = len({trial.evaluation.label for trial in self.trials}), found.settings, found.estimate.n
        first = (
            f"Best of {tried} samplers: S_churn {chosen.s_churn:.3g}, S_tmin {chosen.s_tmin:.3g}, "
            f"S_tmax {chosen.s_tmax:.3g}, S_noise {chosen.s_noise:.4g}, "
            f"with FID {found.estimate.fid:.3f} +- {found.estimate.se:.3f} on {n} fresh images."
        )
        if found.label == DETERMINISTIC:
            return [first, "Deterministic sampling itself is best here: churn did not help this model on this data."]
        if found.gain is None:
            return [first, "Deterministic sampling could not be evaluated, so there is nothing to compare with."]
        gap, se = found.gain
        interval = f"difference {gap:+.3f}, 95 % interval {gap - 2 * se:+.3f} to {gap + 2 * se:+.3f}"
        if best.label != found.label:
            return [
                first.replace("Best of", "The search found, of", 1),
                f"Fresh seeds show no gain over deterministic sampling ({interval}), so that is what is recommended: "
                f"FID {best.estimate.fid:.3f} +- {best.estimate.se:.3f}.",
            ]
        verdict = "lower" if gap + 2 * se < 0 else "not clearly different"
        return [first, f"That is {verdict} against deterministic sampling on the same seeds: {interval}."]

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


def result_of(controller: SweepController) -> SweepResult:
    """Read the result off a controller (finished or not: what there is so far)."""
    trials = tuple(controller.answers[key] for key in controller.answers)
    baseline = controller.estimate(DETERMINISTIC, controller.plan.confirm_chunks, "confirm")
    confirmed = []
    for answer in trials:
        if answer.evaluation.stage != "confirm" or answer.estimate is None:
            continue
        label = answer.evaluation.label
        compare = baseline is not None and label != DETERMINISTIC
        gain = paired_difference(answer.estimate, baseline) if compare and baseline is not None else None
        confirmed.append(
            Confirmed(label=label, settings=answer.evaluation.settings, estimate=answer.estimate, gain=gain)
        )
    best = controller.best
    winner = next((entry for entry in confirmed if entry.label == best), None)
    if winner is not None and winner.gain is not None and winner.gain[0] >= 0:
        # A rule fixed beforehand, not a choice among the confirmed: without a gain the simplest sampler is the answer.
        best = DETERMINISTIC
    images, evaluations = _cost(trials, controller.plan.chunk_size)
    return SweepResult(
        space=controller.space.name,
        trials=trials,
        line=tuple(controller.line),
        found=controller.best,
        best=best,
        tied=tuple(controller.tied),
        confirmed=tuple(confirmed),
        decisions=tuple(controller.decisions),
        images=images,
        evaluations=evaluations,
    )


def _cost(trials: tuple[Answer, ...], chunk_size: int) -> tuple[int, int]:
    """Images and network evaluations: a longer look at a setting takes in the chunks of the shorter one."""
    chunks: dict[tuple[str, str], int] = {}
    nfe: dict[tuple[str, str], int] = {}
    for trial in trials:
        key = (trial.evaluation.label, trial.evaluation.seeds)
        chunks[key] = max(chunks.get(key, 0), trial.evaluation.chunks)
        nfe[key] = trial.evaluation.settings.nfe
    return (
        sum(chunks.values()) * chunk_size,
        sum(count * nfe[key] for key, count in chunks.items()) * chunk_size,
    )


def best_sampler_yaml(result: SweepResult, **source: str) -> str:
    """The winner's settings, and where they come from; `settings_from_yaml` reads it back."""
    best = result.require_best()
    estimate = best.estimate
    content = {
        "sampler": dataclasses.asdict(best.settings),
        "found_by": {
            "space": result.space,
            **source,
            "extractor": estimate.extractor,
            "reference": estimate.reference,
            "n": estimate.n,
            "fid": round(float(estimate.fid), 4),
            "standard_error": round(float(estimate.se), 4),
        },
    }
    return "# The best sampler a sweep found. Use: edm-ray generate --sampler THIS_FILE ...\n" + yaml.safe_dump(
        content, sort_keys=False
    )


def settings_from_yaml(text: str, source: str = "sampler file") -> SamplerSettings:
    """Settings of a best-sampler.yaml. Raises InputError naming what is wrong."""
    content = parse_yaml(text, source)
    if not isinstance(content.get("sampler"), dict):
        raise InputError(f"{source}: key 'sampler' with the settings is missing")
    base = dataclasses.asdict(SamplerSettings())
    return validate(SamplerSettings, merge(base, content["sampler"], source), source)
