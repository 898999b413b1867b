"""Metrics as tasks on CPUs, beside the sampling: the sums of a set of images first, then each FID of the jackknife by
itself, against a reference that is decomposed once in the cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from edm_ray.distributed.chunks import Chunk, read_parts
from edm_ray.evaluation.fid import FidEstimate, FidReference, estimate_of, jackknife_distances
from edm_ray.evaluation.measure import Measured, Plan, Scores, scores_of_parts
from edm_ray.evaluation.moments import Moments

CPUS = 0.05
"""Samplers leave so little of each CPU; metrics of one set are worked out beside the sampling of the next."""
WORTH_A_TASK = 512
"""Features; with fewer an FID takes less time than a process that imports what it takes."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One set of images against one reference."""

    measured: Measured
    made_on: tuple[str, ...]
    """The kinds of device that made the images."""


@ray.remote(num_cpus=CPUS, max_retries=2, num_returns=3)
def _sums(store: str, chunks: list[Chunk], within: range, plan: Plan) -> tuple[list[Moments], Scores, tuple[str, ...]]:
    """Moments of the jackknife's groups, the scores that are no FID, and the kinds of device."""
    kinds: set[str] = set()

    def parts() -> Iterator[tuple[Any, Any]]:
        for part in read_parts(store, chunks, within):
            kinds.add(part.made_on)
            yield part.features, part.seeds

    sums, scores = scores_of_parts(parts(), plan)
    return sums.groups(), scores, tuple(sorted(kinds))


@ray.remote(num_cpus=CPUS, max_retries=2)
def _decompose(plan: Plan) -> FidReference:
    return FidReference(plan.reference.moments)


@ray.remote(num_cpus=CPUS, max_retries=2)
def _distances(groups: list[Moments], reference: FidReference, which: Sequence[int | None]) -> list[float]:
    return jackknife_distances(groups, reference, which)


class Metrics:
    """Those of one plan. The reference is decomposed at once, while the first images are sampled."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.shared = plan, ray.put(plan)
        self.reference = _decompose.remote(self.shared)
        everything: list[int | None] = [None, *range(plan.groups)]
        spread = plan.reference.moments.mean.size >= WORTH_A_TASK
        self.tasks = [[k] for k in everything] if spread else [everything]

    def begin(self, store: str, chunks: list[Chunk], within: range) -> tuple[Any, ...]:
        """Start on the images of these seeds; what it returns is for `end`."""
        groups, scores, kinds = _sums.remote(store, chunks, within, self.shared)
        return scores, kinds, [_distances.remote(groups, self.reference, which) for which in self.tasks]

    def end(self, begun: tuple[Any, ...]) -> Answer:
        scores, kinds, parts = begun
        fid, *lo = [value for part in ray.get(parts) for value in part]
        found: Scores = ray.get(scores)
        moments = self.plan.reference.moments
        estimate: FidEstimate = estimate_of(fid, lo, found.n, moments.hash, moments.extractor)
        return Answer(measured=found.with_fid(estimate, self.plan), made_on=ray.get(kinds))
