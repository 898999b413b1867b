"""The controller of a sweep: asks for evaluations, is told FIDs, decides.

    line + global   the deterministic baseline, the named starts, a line over S_churn alone, and scrambled Sobol points
                    over the whole space, all on the same few chunks of seeds
    race            those that may still be best get twice the chunks, again and again; whoever is worse than the best
                    by z standard errors of the *paired* difference is dropped
    confirm         the winner, the runner-up and deterministic sampling on fresh seeds, which decide nothing

Decisions are taken between stages, from results that do not depend on the order in which they came, so a sweep that is
run again on the same chunks decides the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scipy.stats import qmc

from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate, paired_difference
from edm_ray.search.space import Space

DETERMINISTIC = "deterministic"


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """How much a sweep spends."""

    chunk_size: int = 500
    initial_chunks: int = 10
    max_chunks: int = 60
    num_line: int = 5
    num_global: int = 30
    num_finalists: int = 6
    """At most so many settings enter the race after the first look."""
    confirm_chunks: int = 100
    z: float = 2.0

    def __post_init__(self) -> None:
        for name in ("chunk_size", "initial_chunks", "num_line", "confirm_chunks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is not allowed: 1 or more")
        if self.num_global < 0 or self.num_finalists < 2:
            raise InputError("num_global must be 0 or more and num_finalists 2 or more")
        if self.max_chunks < self.initial_chunks:
            raise InputError(f"max_chunks={self.max_chunks} is not allowed: at least {self.initial_chunks}")
        if self.initial_chunks * self.chunk_size < 50:
            raise InputError("initial_chunks * chunk_size must be 50 images or more, or the first look says nothing")

    def max_images(self, num_starts: int) -> int:
        """Upper bound of the images that a sweep generates."""
        first = (1 + num_starts + self.num_line + self.num_global) * self.initial_chunks
        race = self.num_finalists * (self.max_chunks - self.initial_chunks)
        return (first + race + 3 * self.confirm_chunks) * self.chunk_size

    def describe(self, num_starts: int) -> str:
        first = 1 + num_starts + self.num_line + self.num_global
        return (
            f"{first} settings at {self.initial_chunks * self.chunk_size} images, up to {self.num_finalists} raced to "
            f"{self.max_chunks * self.chunk_size}, 3 confirmed on {self.confirm_chunks * self.chunk_size} fresh; "
            f"at most {self.max_images(num_starts):,} images"
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One question: the FID of these settings on the first ``chunks`` chunks of a pool of seeds."""

    id: str
    label: str
    settings: SamplerSettings
    stage: str
    seeds: str
    """search or confirm."""
    chunks: int


@dataclass(kw_only=True)
class Answer:
    """What became of an evaluation."""

    evaluation: Evaluation
    estimate: FidEstimate | None = None
    seconds: float = 0.0
    failure: str = ""


class SweepController:
    """State of one sweep. ``denoiser`` is only asked for its range of sigma, to tell which settings are the same."""

    def __init__(self, space: Space, plan: SweepPlan, seed: int = 0, denoiser: Any = None) -> None:
        self.space, self.plan = space, plan
        self.answers: dict[str, Answer] = {}
        self.decisions: list[str] = []
        self.stage = "first look"
        self.chunks = plan.initial_chunks
        self.labels: dict[str, str] = {}
        """Label -> the label under which the same sampler is evaluated."""
        self.settings: dict[str, SamplerSettings] = {}
        self.line: list[str] = []
        self._enter(DETERMINISTIC, space.sampler, denoiser)
        for name, settings in space.starts.items():
            self._enter(name, settings, denoiser)
        for i in range(1, plan.num_line + 1):
            label = f"churn {i}/{plan.num_line}"
            fraction = space.churn_fraction.at(i / plan.num_line)
            self._enter(label, space.settings({"churn_fraction": fraction}), denoiser)
            self.line.append(self.labels[label])
        if plan.num_global:
            sobol = qmc.Sobol(4, scramble=True, rng=seed).random(1 << (plan.num_global - 1).bit_length())
            for i, shares in enumerate(sobol[: plan.num_global].tolist()):
                self._enter(f"global {i + 1}", space.at(tuple(shares)), denoiser)
        self.alive = list(self.settings)
        self.best: str | None = None
        self.runner_up: str | None = None
        self.tied: list[str] = []
        self._asked: set[str] = set()
        self._plan_stage([(label, self._kind(label)) for label in self.alive])

    def _kind(self, label: str) -> str:
        return "line" if label in self.line else "baseline" if not label.startswith("global") else "global"

    def _enter(self, label: str, settings: SamplerSettings, denoiser: Any) -> None:
        """Take a setting in, unless it is the same sampler as one that is in already."""
        effective = settings.effective(denoiser)
        for other, known in self.settings.items():
            if known == effective:
                self.labels[label] = other
                self.decisions.append(f"{label} is the same sampler as {other}: evaluated once")
                return
        self.labels[label] = label
        self.settings[label] = effective

    def _plan_stage(self, entries: list[tuple[str, str]], seeds: str = "search") -> None:
        self._stage = [
            Evaluation(
                id=f"{seeds}/{label}/{self.chunks}",
                label=label,
                settings=self.settings[label],
                stage=stage,
                seeds=seeds,
                chunks=self.chunks,
            )
            for label, stage in entries
        ]

    def ask(self) -> list[Evaluation]:
        """Evaluations to run now; each is handed out once. Empty while others are awaited, and when all is done."""
        new = [evaluation for evaluation in self._stage if evaluation.id not in self._asked]
        self._asked |= {evaluation.id for evaluation in new}
        return new

    def tell(self, evaluation_id: str, estimate: FidEstimate, seconds: float = 0.0) -> None:
        """The answer to an evaluation. An FID that is not a number counts as a failure."""
        if not math.isfinite(estimate.fid) or not math.isfinite(estimate.se):
            self.tell_failure(evaluation_id, f"FID is {estimate.fid}")
            return
        self._record(evaluation_id, Answer(evaluation=self._find(evaluation_id), estimate=estimate, seconds=seconds))

    def tell_failure(self, evaluation_id: str, message: str) -> None:
        """The sweep goes on without this setting; it is listed as failed."""
        self._record(evaluation_id, Answer(evaluation=self._find(evaluation_id), failure=message))

    def _find(self, evaluation_id: str) -> Evaluation:
        return next(evaluation for evaluation in self._stage if evaluation.id == evaluation_id)

    def _record(self, evaluation_id: str, answer: Answer) -> None:
        self.answers[evaluation_id] = answer
        if all(evaluation.id in self.answers for evaluation in self._stage):
            self._advance()

    @property
    def finished(self) -> bool:
        return self.stage == "done"

    def estimate(self, label: str, chunks: int, seeds: str = "search") -> FidEstimate | None:
        answer = self.answers.get(f"{seeds}/{label}/{chunks}")
        return answer.estimate if answer else None

    def _advance(self) -> None:
        if self.stage == "confirm":
            self.stage = "done"
            return
        ranked = self._rank()
        if not ranked:
            self.decisions.append("every evaluation failed: there is no best setting")
            self.stage = "done"
            return
        best = ranked[0]
        kept, dropped = [best], list[str]()
        for label in ranked[1:]:
            gap, se = self._gap(label, best)
            (dropped if gap > self.plan.z * se else kept).append(label)
        self._say_race(best, kept, dropped)
        if self.stage == "first look":
            kept = kept[: self.plan.num_finalists]
        self.alive = kept
        if len(kept) > 1 and self.chunks < self.plan.max_chunks:
            self.stage = "race"
            self.chunks = min(2 * self.chunks, self.plan.max_chunks)
            self._plan_stage([(label, "race") for label in self.alive])
            return
        self.best, self.tied = best, kept[1:]
        self.runner_up = ranked[1] if len(ranked) > 1 else None
        self.stage = "confirm"
        self.chunks = self.plan.confirm_chunks
        wanted = dict.fromkeys(label for label in (self.best, self.runner_up, DETERMINISTIC) if label)
        self.decisions.append(f"{best} wins the search; {', '.join(wanted)} are confirmed on fresh seeds")
        self._plan_stage([(label, "confirm") for label in wanted], "confirm")

    def _rank(self) -> list[str]:
        """Settings of this stage that have an FID, best debiased FID first; equal ones by label, never by arrival."""
        known = {e.label: self.answers[e.id].estimate for e in self._stage}
        values = {label: estimate.debiased for label, estimate in known.items() if estimate is not None}
        return sorted(values, key=lambda label: (values[label], label))

    def _gap(self, label: str, best: str) -> tuple[float, float]:
        a, b = self.estimate(label, self.chunks), self.estimate(best, self.chunks)
        assert a is not None and b is not None
        return paired_difference(a, b)

    def _say_race(self, best: str, kept: list[str], dropped: list[str]) -> None:
        n = self.chunks * self.plan.chunk_size
        text = f"at {n} images {best} leads; {len(kept) - 1} others may still be best"
        if dropped:
            text += f"; dropped by more than {self.plan.z:g} standard errors: {', '.join(dropped)}"
        self.decisions.append(text)
