"""Evaluate several trainings: each model's metrics, and how far their FIDs spread."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edm_ray.diffusion.samplers import Heun, Sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.trainings import Spread, spread
from edm_ray.execution.executor import Executor, OnProgress, no_progress
from edm_ray.execution.local import Local
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model
from edm_ray.storage import uris
from edm_ray.storage.lease import hold
from edm_ray.tasks.evaluate import CHUNKS, EvaluateOptions, Evaluation, EvaluationPlan, plan_evaluation
from edm_ray.tasks.given import OpenedReference
from edm_ray.tasks.options import read_options

TRAININGS = "trainings.json"
FORMAT = 1
"""Of that file."""


@dataclass(frozen=True, kw_only=True)
class TrainingsEvaluation:
    """Models of several trainings with one sampler, on the same seeds."""

    evaluations: tuple[Evaluation, ...]
    """Of each model, in the order that was given."""

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """Of the FIDs against each reference."""
        places = range(len(self.evaluations[0].plans))
        return tuple(spread([each.measured(place)[0].fid for each in self.evaluations]) for place in places)

    def describe(self) -> str:
        one, first = self.spreads[0], self.evaluations[0]
        return f"FID {one.mean:.3f} ({one.low:.3f} to {one.high:.3f}, n={one.n}) over {len(one.fids)} trainings, " + (
            f"{first.sampler}, against {first.plans[0].reference.describe()}"
        )

    def to_dict(self) -> dict[str, Any]:
        """What trainings.json holds."""
        first = self.evaluations[0]
        spreads = [
            {"reference": plan.reference.describe(), **one.to_dict()}
            for plan, one in zip(first.plans, self.spreads, strict=True)
        ]
        return {"format": FORMAT, "spreads": spreads, "models": [each.to_dict() for each in self.evaluations]}


@dataclass(frozen=True, kw_only=True)
class TrainingsPlan:
    """Evaluations of several models that were checked; `run` does them."""

    plans: tuple[EvaluationPlan, ...]
    out: str | None

    def run(self, on: Executor, on_chunk: OnProgress = no_progress) -> TrainingsEvaluation:
        made = []
        with hold(self.out, "evaluate"), self.plans[0].open_spec() as spec, on.session(spec.recipe()):
            for number, plan in enumerate(self.plans):
                own = dataclasses.replace(plan, options=dataclasses.replace(plan.options, store=spec.store))
                made.append(own.run(on, self._of_all(number, on_chunk)))
        result = TrainingsEvaluation(evaluations=tuple(made))
        if self.out is not None:
            uris.write_bytes(uris.join(self.out, TRAININGS), json.dumps(result.to_dict(), indent=1).encode())
        return result

    def _of_all(self, number: int, on_chunk: OnProgress) -> OnProgress:
        """``on_chunk`` for the model of this number: it is told of the chunks of all."""
        return lambda done, total: on_chunk(number * total + done, len(self.plans) * total)


def plan_trainings(
    models: Sequence[str | Model | ModelDenoiser],
    reference: str | OpenedReference | Sequence[str | OpenedReference],
    sampler: Sampler,
    num: int,
    options: EvaluateOptions,
    out: str | None = None,
) -> TrainingsPlan:
    """Open and check everything. Raises InputError for models that are no trainings of one kind."""
    if options.protocol == "paper":
        raise InputError("--protocol paper is of one model; give several models without it")
    if out is not None and options.store is None:
        options = dataclasses.replace(options, store=uris.join(uris.absolute(out), CHUNKS))
    plans = [plan_evaluation(model, reference, sampler, num, options) for model in models]
    first, *others = [plan.model for plan in plans]  # of images of one shape: the reference's
    for other in others:
        if (other.config.network.label_dim, other.class_names) != (first.config.network.label_dim, first.class_names):
            raise InputError(f"{other.uri}: has other classes than {first.uri}; give trainings of one data set")
    hashes = [plan.model.hash for plan in plans]
    if twice := [plan.model.uri for i, plan in enumerate(plans) if hashes[i] in hashes[:i]]:
        raise InputError(f"--model {twice[0]}: the same model is given twice; give those of several trainings")
    return TrainingsPlan(plans=tuple(plans), out=out)


def evaluate_trainings(
    models: Sequence[str | Model | ModelDenoiser],
    reference: str | OpenedReference | Sequence[str | OpenedReference],
    sampler: Sampler = Heun(),  # noqa: B008 (frozen)
    num: int = 50_000,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    out: str | None = None,
    on_chunk: OnProgress = no_progress,
    **options: Any,
) -> TrainingsEvaluation:
    """The metrics of models that differ in their training only (its seed, mostly), each as `evaluate` gives them, and
    how much of the spread of their FIDs is the trainings' and how much the images'.

    All models see the same seeds, so the spread holds little of sampling. options: fields of `EvaluateOptions`. Raises
    InputError (a ValueError) for fewer than two models, or models of other images.
    """
    if len(models) < 2:
        raise InputError(f"a spread between trainings needs 2 models or more, got {len(models)}")
    return plan_trainings(models, reference, sampler, num, read_options(EvaluateOptions, options), out).run(
        on, on_chunk
    )
