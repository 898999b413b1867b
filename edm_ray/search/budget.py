"""What a sweep spends: images and network evaluations, and how many samplers can still be confirmed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edm_ray.errors import InputError
from edm_ray.search.registry import Registry
from edm_ray.search.trials import Evaluation, TrialResult


class BudgetSpent(Exception):
    """Inside a strategy: the next batch would not leave enough for the confirmation."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a sweep is planned to take."""

    chunk_size: int
    search_chunks: int
    """At most so many chunks for the search."""
    confirm_chunks: int
    """Of each sampler that is confirmed."""
    num_confirmed: int

    @property
    def confirm_images(self) -> int:
        return self.confirm_chunks * self.chunk_size


class Budget:
    """Images and network evaluations spent, and left once what the confirmation needs is kept."""

    def __init__(self, sizes: Sizes, registry: Registry, decisions: list[str]) -> None:
        self.sizes = sizes
        self.num_confirmed = sizes.num_confirmed
        self.images, self.evaluations = 0, 0
        """Spent so far."""
        self._registry, self._decisions = registry, decisions
        self._longest: dict[tuple[str, str], int] = {}
        """(label, seeds) -> chunks paid for."""
        self._given_images: int | None = None
        self._given_evaluations = math.inf
        """What a user allows, beside what the strategy takes at most."""

    @property
    def most_images(self) -> int:
        """Upper bound of the images of the whole sweep, confirmation included: a budget can only lower it."""
        sizes = self.sizes
        most = (sizes.search_chunks + self.num_confirmed * sizes.confirm_chunks) * sizes.chunk_size
        return most if self._given_images is None else min(most, self._given_images)

    def limit_images(self, count: int, first_chunks: int) -> None:
        """Spend at most so many images. Raises InputError when two samplers cannot be looked at and confirmed."""
        first, each = 2 * first_chunks * self.sizes.chunk_size, self.sizes.confirm_images
        if count < first + 2 * each:
            raise InputError(
                f"budget_images={count:,} is too small to confirm anything: a first look at two settings takes "
                f"{first:,}, two on fresh seeds {2 * each:,}; give {first + 2 * each:,} or more (with --nfe for each "
                "budget: --budget-images is shared by all), or smaller confirm_chunks"
            )
        self._fit_confirmation(count, each)
        self._given_images = count

    def limit_evaluations(self, count: int) -> None:
        """Spend at most so many network evaluations of one image, with those already spent and the confirmation.

        Raises InputError when that is too little to confirm.
        """
        each = self.sizes.confirm_images * self._dearest()
        needed = self.evaluations + 2 * each
        if count < needed:
            raise InputError(
                f"the budget is {count:,} network evaluations of one image, too little to confirm anything: {needed:,} "
                "are needed; give more GPU hours, or a smaller --confirm-chunks (what was generated is kept)"
            )
        self._fit_confirmation(count - self.evaluations, each)
        self._given_evaluations = count

    def affordable(self, wanted: Sequence[Evaluation]) -> int:
        """How many of these, from the first on, the search can pay."""
        images, evaluations = self._left()
        for count, each in enumerate(wanted):
            images -= self._new_images(each)
            evaluations -= self._new_images(each) * each.settings.nfe
            if images < 0 or evaluations < 0:
                return count
        return len(wanted)

    def pay(self, wanted: Iterable[Evaluation]) -> None:
        """A longer look at a sampler costs only the chunks that a shorter one did not."""
        for each in wanted:
            new = self._new_images(each)
            self.images += new
            self.evaluations += new * each.settings.nfe
            key = (each.label, each.seeds)
            self._longest[key] = max(self._longest.get(key, 0), each.chunks)

    def share_left(self) -> float:
        """Of what the search may spend: what it has not, of images or of network evaluations, whichever is less."""
        spent = (self.images, self.evaluations)
        return min(a / (a + b) if math.isfinite(a) else 1.0 for a, b in zip(self._left(), spent, strict=True))

    def _new_images(self, wanted: Evaluation) -> int:
        return max(wanted.chunks - self._longest.get((wanted.label, wanted.seeds), 0), 0) * self.sizes.chunk_size

    def _left(self) -> tuple[float, float]:
        """Images and network evaluations that the search may still spend."""
        kept = self.num_confirmed * self.sizes.confirm_images
        return (
            self.most_images - kept - self.images,
            self._given_evaluations - kept * self._dearest() - self.evaluations,
        )

    def _dearest(self) -> int:
        return max(sampler.nfe for sampler in self._registry.samplers.values())

    def _fit_confirmation(self, budget: int, each: int) -> None:
        """Confirm fewer where the confirmation of all would take more than half of the budget; two at least."""
        fits = max(2, budget // 2 // each)
        if fits < self.num_confirmed:
            self.num_confirmed = fits
            self._decisions.append(f"the budget allows {fits} settings to be confirmed")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one stage."""

    stage: str
    settings: int
    """Samplers that were looked at in it."""
    images: int
    """New images; those of failed trials are counted as if they had been made."""
    evaluations: int
    """Network evaluations: images times NFE."""


def costs(trials: Iterable[TrialResult], chunk_size: int) -> tuple[Cost, ...]:
    """What was spent, in the order of the stages. A chunk is paid once."""
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
