"""What a search asks for and what it is told: evaluations of samplers and their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.sampler_field import SamplerField

Pool = Literal["search", "confirm"]
"""Which seeds: those of the search, or the fresh ones of the confirmation."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One question: the FID of a sampler on the first ``chunks`` chunks of a pool of seeds."""

    id: str
    """`evaluation_id` of the rest."""
    label: str
    settings: SamplerField
    stage: str
    seeds: Pool
    chunks: int


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What became of an evaluation."""

    evaluation: Evaluation
    estimate: FidEstimate | None = None
    seconds: float = 0.0
    failure: str = ""


class Trials:
    """The results of completed batches, in the order of asking."""

    def __init__(self) -> None:
        self.results: dict[str, TrialResult] = {}

    def __len__(self) -> int:
        return len(self.results)

    def estimate(self, label: str, chunks: int) -> FidEstimate | None:
        """On the seeds of the search; None where it failed or was not looked at."""
        result = self.results.get(evaluation_id("search", label, chunks))
        return result.estimate if result else None

    def at(self, chunks: int) -> dict[str, FidEstimate]:
        """What was seen on so many chunks of the search's seeds, best first."""
        return ranked({what.label: found for what, found in self._searched() if what.chunks == chunks})

    def longest(self) -> dict[str, FidEstimate]:
        """The longest look at each sampler on the search's seeds, best first."""
        longest: dict[str, FidEstimate] = {}
        for what, found in self._searched():
            if what.label not in longest or found.n >= longest[what.label].n:
                longest[what.label] = found
        return ranked(longest)

    def most_chunks(self) -> int:
        """Chunks of the longest look of all; 0 before the first."""
        return max((what.chunks for what, _ in self._searched()), default=0)

    def _searched(self) -> list[tuple[Evaluation, FidEstimate]]:
        return [
            (each.evaluation, each.estimate)
            for each in self.results.values()
            if each.estimate is not None and each.evaluation.seeds == "search"
        ]


def evaluation_id(seeds: Pool, label: str, chunks: int) -> str:
    return f"{seeds}/{label}/{chunks}"


def ranked(estimates: dict[str, FidEstimate]) -> dict[str, FidEstimate]:
    """Best debiased FID first; equal ones by label, never by arrival."""
    return dict(sorted(estimates.items(), key=lambda item: (item[1].debiased, item[0])))
