"""A second reference of a sweep: opened with it, and asked about what was confirmed once the search has ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edm_ray.errors import InputError
from edm_ray.evaluation.measure import Plan
from edm_ray.execution import activity
from edm_ray.execution.executor import Executor
from edm_ray.generation.evaluate import EvaluationSpec, fid_meter
from edm_ray.models.directory import Model
from edm_ray.search.plan import SweepPlan
from edm_ray.search.result import SweepResult
from edm_ray.search.second import SecondOpinion
from edm_ray.tasks.given import OpenedReference, reference_of, require_fit


def open_second(given: str | None, first: OpenedReference, model: Model) -> OpenedReference | None:
    """Raises InputError for one that does not fit the model, or is the first."""
    if given is None:
        return None
    second = reference_of(given)
    require_fit(second, model)
    if second.reference.moments.hash == first.reference.moments.hash:
        raise InputError(f"--second-reference {given}: the same as --reference; give one of another extractor")
    return second


def with_second_opinions(
    results: Sequence[SweepResult], second: OpenedReference, spec: EvaluationSpec, plan: SweepPlan, on: Executor
) -> tuple[SweepResult, ...]:
    """What it says of the confirmed samplers of each race, on the seeds that confirmed them. spec: of the sweep, whose
    workers have ended: these take their places."""
    activity.stage("measuring the confirmed samplers by the second reference")
    own = dataclasses.replace(spec, extractors=(second.extractor,))
    with fid_meter(own, Plan(metrics=("fid",), reference=second.reference), on) as meter:

        def opinion(result: SweepResult) -> SecondOpinion:
            confirmed = {each.label: each.settings.to_dict() for each in result.confirmed}
            size = (plan.confirm_chunks, plan.chunk_size)
            estimates = {label: meter.fid(settings, "confirm", *size) for label, settings in confirmed.items()}
            return SecondOpinion(reference=second.describe(), estimates=estimates)

        return tuple(dataclasses.replace(result, second=opinion(result)) for result in results)
