"""What a sweep cost, by stage. A chunk is paid once: a longer look at a setting takes in the chunks of the shorter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edm_ray.search.strategy import Answer


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one stage."""

    stage: str
    settings: int
    """Settings that were looked at in it."""
    images: int
    """New images; those of failed trials are counted as if they had been made."""
    evaluations: int
    """Network evaluations: images times NFE."""


def costs(trials: Iterable[Answer], chunk_size: int) -> tuple[Cost, ...]:
    """Costs in the order of the stages."""
    have: dict[tuple[str, str], int] = {}
    stages: dict[str, tuple[set[str], int, int]] = {}
    for trial in trials:
        asked = trial.evaluation
        key = (asked.label, asked.seeds)
        new = max(asked.chunks - have.get(key, 0), 0) * chunk_size
        have[key] = max(have.get(key, 0), asked.chunks)
        labels, images, evaluations = stages.setdefault(asked.stage, (set(), 0, 0))
        labels.add(asked.label)
        stages[asked.stage] = (labels, images + new, evaluations + new * asked.settings.nfe)
    return tuple(
        Cost(stage=stage, settings=len(labels), images=images, evaluations=evaluations)
        for stage, (labels, images, evaluations) in stages.items()
    )
