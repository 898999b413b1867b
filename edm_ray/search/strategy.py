"""What all strategies share: questions, answers, what was spent, and the confirmation. No Ray, no clock, no images.

A strategy is a generator of batches of looks: ``found = yield from self.look(...)``. The driver here hands a batch out
(`ask`), waits for all of its answers (`tell`, in any order) and lets the generator go on. So decisions depend on the
answers alone, not on their order, and a sweep that is run again on the same chunks decides the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.plan import SweepPlan
from edm_ray.search.sampler_field import SamplerField
from edm_ray.search.space import Point, Space
from edm_ray.search.statistics import Noise

DETERMINISTIC = "deterministic"
MOST_OF_FRONT = 4
"""With objective nfe: so many of the front are confirmed, beside the best."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One question: the FID of these settings on the first ``chunks`` chunks of a pool of seeds."""

    id: str
    label: str
    settings: SamplerField
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


class BudgetSpent(Exception):
    """Inside a strategy: the next batch would not leave enough for the confirmation."""


Batches = Generator[list[Evaluation], None, None]


class Strategy(ABC):
    """State of one sweep. ``denoiser`` is only asked for its range of sigma, to tell which settings are the same."""

    name = ""

    def __init__(self, space: Space, plan: SweepPlan, seed: int = 0, denoiser: Any = None) -> None:
        self.space, self.plan, self.seed, self.denoiser = space, plan, seed, denoiser
        self.answers: dict[str, Answer] = {}
        """Of completed batches, in the order of asking."""
        self.decisions: list[str] = []
        self.settings: dict[str, Sampler] = {}
        """Label -> effective settings; a sampler has one label."""
        self.labels: dict[str, str] = {}
        """Label -> the label under which the same sampler is evaluated."""
        self.points: dict[str, Point] = {}
        self.line: list[str] = []
        self.best: str | None = None
        self.runner_up: str | None = None
        self.tied: list[str] = []
        self.front: list[str] = []
        """With objective nfe: those that nothing cheaper beats, cheapest first."""
        self.cheapest: str | None = None
        """With objective nfe: the one of fewest evaluations within ``plan.within`` percent of the best."""
        self.noise: Noise | None = None
        self.first_chunks = plan.initial_chunks
        self.stopped = ""
        """Why the search ended early, if it did."""
        self.stage = "search"
        self._known: dict[Sampler, str] = {}
        self._have: dict[tuple[str, str], int] = {}
        self._spent = [0, 0]
        self._batch: list[Evaluation] = []
        self._asked: set[str] = set()
        self._pending: dict[str, Answer] = {}
        self.enter(DETERMINISTIC, space.sampler)
        for label, settings in space.starts.items():
            self.enter(label, settings)
        self.paper = self.labels.get(space.paper or "")
        self.num_confirmed = 3 + (self.paper is not None) + (MOST_OF_FRONT if "nfe" in plan.objective else 0)
        self._given = len(self.settings) - 1
        self._limit: tuple[float, float] = (self.most_images, math.inf)
        if plan.budget_images is not None:
            self._limit_images(plan.budget_images)
        self._program = self._run()
        self._next()

    # -- asked from outside ------------------------------------------------------------------------------------------

    def ask(self) -> list[Evaluation]:
        """Evaluations to run now; each is handed out once. Empty while others are awaited, and when all is done."""
        new = [evaluation for evaluation in self._batch if evaluation.id not in self._asked]
        self._asked |= {evaluation.id for evaluation in new}
        return new

    def tell(self, evaluation_id: str, estimate: FidEstimate, seconds: float = 0.0) -> None:
        """The answer to an evaluation. An FID that is not a number counts as a failure."""
        values = (estimate.fid, estimate.debiased, estimate.se, *estimate.leave_one_out)
        if not all(math.isfinite(value) for value in values):
            self.tell_failure(evaluation_id, f"FID is {estimate.fid}")
            return
        self._record(Answer(evaluation=self._find(evaluation_id), estimate=estimate, seconds=seconds))

    def tell_failure(self, evaluation_id: str, message: str) -> None:
        """The sweep goes on without this setting; it is listed as failed."""
        self._record(Answer(evaluation=self._find(evaluation_id), failure=message))

    @property
    def finished(self) -> bool:
        return self.stage == "done"

    @property
    def trials(self) -> list[Answer]:
        """All answers so far, in the order of asking."""
        return [*self.answers.values(), *(self._pending[e.id] for e in self._batch if e.id in self._pending)]

    @property
    def most_images(self) -> int:
        """Upper bound of the images of the whole sweep, confirmation included."""
        plan = self.plan
        points = self.space.count(plan.grid_points) if plan.strategy == "grid" else None
        chunks = plan.search_chunks(self._given, points) + self.num_confirmed * plan.confirm_chunks
        return min(chunks * plan.chunk_size, plan.budget_images or chunks * plan.chunk_size)

    def describe(self) -> str:
        """What will be done, in a sentence."""
        plan, size = self.plan, self.plan.chunk_size
        looks = f"{plan.initial_chunks * size:,} to {plan.max_chunks * size:,} images a setting"
        if plan.strategy in ("grid", "random", "optuna"):
            looks = f"{plan.max_chunks * size:,} images a setting"
        return (
            f"{self.name}, {looks}, up to {self.num_confirmed} settings confirmed on "
            f"{plan.confirm_chunks * size:,} fresh ones each; at most {self.most_images:,} images"
        )

    def limit_evaluations(self, count: int) -> None:
        """Spend at most so many network evaluations of one image, with those already spent and the confirmation.

        Raises InputError when that is too little to confirm.
        """
        dearest = max(settings.nfe for settings in self.settings.values())
        needed = self._spent[1] + 2 * self._confirm_images * dearest
        if count < needed:
            raise InputError(
                f"the budget is {count:,} network evaluations of one image, too little to confirm anything: {needed:,} "
                "are needed; give more GPU hours, or a smaller --confirm-chunks (what was generated is kept)"
            )
        self._fit_confirmation(count - self._spent[1], self._confirm_images * dearest)
        self._limit = (self._limit[0], count)

    def estimate(self, label: str, chunks: int, seeds: str = "search") -> FidEstimate | None:
        answer = self.answers.get(f"{seeds}/{label}/{chunks}")
        return answer.estimate if answer else None

    # -- used by strategies ------------------------------------------------------------------------------------------

    @abstractmethod
    def search(self) -> Batches:
        """Look for the best setting; at the end `settle` it."""

    def enter(self, label: str, settings: Sampler, point: Point | None = None) -> str:
        """Take a setting in; returns the label it is evaluated under, another one if the same sampler is in already."""
        effective = settings.effective(self.denoiser)
        other = self._known.setdefault(effective, label)
        self.labels[label] = other
        if other != label:
            self.decisions.append(f"{label} is the same sampler as {other}: evaluated once")
        else:
            self.settings[label] = effective
            self.points[label] = self.space.point_of(settings) if point is None else point
        return other

    def known(self, settings: Sampler) -> str | None:
        """The label of this sampler, if it is in."""
        return self._known.get(settings.effective(self.denoiser))

    def cost_of(self, settings: Sampler) -> int:
        """What a setting must be worth: its network evaluations with objective nfe, else nothing."""
        return settings.nfe if "nfe" in self.plan.objective else 0

    def is_new(self, point: Point) -> bool:
        """Whether a point is a sampler that is not in yet."""
        try:
            return self.known(self.space.settings(point)) is None
        except InputError:
            return False

    def add(self, point: Point, label: str) -> str | None:
        """Enter a point: its label, which is an older one where the sampler is in already; None if it is no sampler."""
        try:
            settings = self.space.settings(point)
        except InputError:
            return None
        return self.known(settings) or self.enter(label, settings, point)

    def look(
        self, labels: Iterable[str], chunks: int, stage: str | Callable[[str], str], partial: bool = False
    ) -> Generator[list[Evaluation], None, dict[str, FidEstimate]]:
        """Evaluate these on the first ``chunks`` chunks: estimates of those that did not fail, best debiased FID first.

        Raises BudgetSpent when that would cost too much; with ``partial`` only when nothing of it can be paid.
        """
        wanted = self._wanted(list(dict.fromkeys(labels)), chunks, stage, "search", partial)
        if wanted:
            yield wanted
        found = {label: self.estimate(label, chunks) for label in dict.fromkeys(labels)}
        return ranked({label: estimate for label, estimate in found.items() if estimate is not None})

    def settle(self, found: Mapping[str, FidEstimate], tied: Iterable[str] = ()) -> None:
        """The end of the search: its estimates at one n, the best first, and those that may be as good as the best."""
        order = list(found)
        self.best, self.tied = (order[0] if order else None), list(tied)
        self.runner_up = order[1] if len(order) > 1 else None
        if "nfe" in self.plan.objective and order:
            self.front = front(found, self.settings)
            bound = found[order[0]].debiased * (1 + self.plan.within / 100)
            self.cheapest = next(label for label in self.front if found[label].debiased <= bound)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _run(self) -> Batches:
        try:
            yield from self.search()
        except BudgetSpent:
            self.stopped = "the budget of the search is spent"
            self.decisions.append(f"{self.stopped}: the best so far is taken")
            self._settle_for_now()
        if self.best is None:
            self.decisions.append("every evaluation failed: there is no best setting")
            return
        self.stage = "confirm"
        wanted = [self.best, DETERMINISTIC, self.cheapest, self.paper, self.runner_up, *self.front]
        labels = list(dict.fromkeys(label for label in wanted if label))[: self.num_confirmed]
        self.decisions.append(f"{self.best} wins the search; {', '.join(labels)} are confirmed on fresh seeds")
        yield self._wanted(labels, self.plan.confirm_chunks, "confirm", "confirm", False)

    def _settle_for_now(self) -> None:
        """The best of those that were looked at longest."""
        longest = max((chunks for (_, seeds), chunks in self._have.items() if seeds == "search"), default=0)
        for chunks in range(longest, 0, -1):
            found = {label: self.estimate(label, chunks) for label in self.settings}
            known = ranked({label: estimate for label, estimate in found.items() if estimate is not None})
            if known:
                self.settle(known)
                return

    @property
    def _confirm_images(self) -> int:
        return self.plan.confirm_chunks * self.plan.chunk_size

    def _limit_images(self, count: int) -> None:
        first = 2 * self.plan.initial_chunks * self.plan.chunk_size
        needed = first + 2 * self._confirm_images
        if count < needed:
            raise InputError(
                f"budget_images={count:,} is too small to confirm anything: a first look at two settings takes "
                f"{first:,}, two on fresh seeds {2 * self._confirm_images:,}; give {needed:,} or more, or smaller "
                "confirm_chunks"
            )
        self._fit_confirmation(count, self._confirm_images)
        self._limit = (count, self._limit[1])

    def _fit_confirmation(self, budget: int, each: int) -> None:
        """Confirm fewer where the confirmation of all would take more than half of the budget; two at least."""
        fits = max(2, budget // 2 // each)
        if fits < self.num_confirmed:
            self.num_confirmed = fits
            self.decisions.append(f"the budget allows {fits} settings to be confirmed")

    def _wanted(
        self, labels: list[str], chunks: int, stage: str | Callable[[str], str], seeds: str, partial: bool
    ) -> list[Evaluation]:
        """Evaluations that are not answered yet, within the budget."""
        wanted: list[Evaluation] = []
        images, evaluations = 0, 0
        left, left_nfe = (math.inf, math.inf) if seeds == "confirm" else self._left()
        for label in labels:
            settings = self.settings[label]
            evaluation = Evaluation(
                id=f"{seeds}/{label}/{chunks}",
                label=label,
                settings=settings,
                stage=stage if isinstance(stage, str) else stage(label),
                seeds=seeds,
                chunks=chunks,
            )
            if evaluation.id in self.answers:
                continue
            cost = max(chunks - self._have.get((label, seeds), 0), 0) * self.plan.chunk_size
            if images + cost > left or evaluations + cost * settings.nfe > left_nfe:
                if not partial or not wanted:
                    raise BudgetSpent
                self.stopped = "the budget of the search is spent"
                self.decisions.append(f"the budget allows a look at {len(wanted)} of {len(labels)} settings only")
                break
            images, evaluations = images + cost, evaluations + cost * settings.nfe
            wanted.append(evaluation)
        self._spent[0] += images
        self._spent[1] += evaluations
        for evaluation in wanted:
            key = (evaluation.label, seeds)
            self._have[key] = max(self._have.get(key, 0), chunks)
        return wanted

    def _left(self) -> tuple[float, float]:
        """Images and network evaluations that the search may still spend: less what the confirmation needs."""
        keep = self.num_confirmed * self._confirm_images
        dearest = max(settings.nfe for settings in self.settings.values())
        return self._limit[0] - keep - self._spent[0], self._limit[1] - keep * dearest - self._spent[1]

    def share_left(self) -> float:
        """Of what the search may spend: what it has not, of images or of network evaluations, whichever is less."""
        left = self._left()
        return min(a / (a + spent) if math.isfinite(a) else 1.0 for a, spent in zip(left, self._spent, strict=True))

    def _find(self, evaluation_id: str) -> Evaluation:
        found = next((evaluation for evaluation in self._batch if evaluation.id == evaluation_id), None)
        assert found is not None, f"{evaluation_id} was not asked for, or was answered before"
        return found

    def _record(self, answer: Answer) -> None:
        self._pending[answer.evaluation.id] = answer
        if len(self._pending) == len(self._batch):
            self._next()

    def _next(self) -> None:
        """Take the batch's answers in, in the order of asking, and let the generator go on to the next batch."""
        self.answers |= {evaluation.id: self._pending[evaluation.id] for evaluation in self._batch}
        self._batch, self._pending = [], {}
        try:
            while not self._batch:
                self._batch = next(self._program)
        except StopIteration:
            self.stage = "done"


def ranked(estimates: dict[str, FidEstimate]) -> dict[str, FidEstimate]:
    """Best debiased FID first; equal ones by label, never by arrival."""
    return dict(sorted(estimates.items(), key=lambda item: (item[1].debiased, item[0])))


def front(found: Mapping[str, FidEstimate], settings: Mapping[str, Sampler]) -> list[str]:
    """Of estimates in order of FID, those with fewer evaluations than all before: the Pareto front, cheapest first."""
    chosen: list[str] = []
    for label in found:
        if not chosen or settings[label].nfe < settings[chosen[-1]].nfe:
            chosen.append(label)
    return chosen[::-1]
