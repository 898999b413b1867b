"""Sweep: the best sampler for a model, chosen by a strategy, confirmed on fresh seeds; one race, or one a budget."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.diffusion.samplers import SOLVERS, Sampler
from edm_ray.distributed.executor import Ray
from edm_ray.errors import InputError
from edm_ray.evaluation.grids import grid_png, image_grid, rows_by_class
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.parts import measure_real, require_real
from edm_ray.evaluation.reference import PIXELS
from edm_ray.execution import activity
from edm_ray.execution.executor import Executor, Maker, make_all
from edm_ray.execution.local import Local
from edm_ray.generation.evaluate import EvaluationSpec, FidMeter, fid_meter, sample_grids
from edm_ray.generation.generate import MICRO_BATCH, check_micro_batch, check_precision, labels_of
from edm_ray.generation.trajectories import NUM_IMAGES, blocks_of, read_trajectories
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model, require_unchanged
from edm_ray.report.by_budget import folder, is_by_budget, save_by_budget, write_budgets_page
from edm_ray.report.html import Context
from edm_ray.report.saved import PROGRESS, RESULT, save_progress, save_report
from edm_ray.search import driver as search_driver
from edm_ray.search.budget_space import at_budget
from edm_ray.search.by_budget import BEST_SAMPLERS, best_samplers_yaml, better_elsewhere
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan
from edm_ray.search.races import Races, longest_nfe
from edm_ray.search.registry import DETERMINISTIC
from edm_ray.search.result import SweepResult, result_of
from edm_ray.search.sampler_file import BEST_SAMPLER, best_sampler_yaml
from edm_ray.search.shipped import BY_BUDGET, space_file
from edm_ray.search.space import Space, load_space
from edm_ray.search.time_budget import limit_hours
from edm_ray.search.trials import Evaluation, TrialResult
from edm_ray.storage import uris
from edm_ray.storage.lease import hold
from edm_ray.tasks.given import OpenedReference, model_of, reference_of, require_fit
from edm_ray.tasks.options import read_options
from edm_ray.tasks.second_opinion import open_second, with_second_opinions
from edm_ray.tasks.swept import Sweep

CHUNKS = "chunks"
"""Of a sweep's folder: images' features, which are not sampled again."""
GRID_COLUMNS, GRID_GAP = 10, 4
SAVE_SECONDS = 5.0
"""A report so far is kept at most so often."""
BUDGET_IMAGES = 300_000
"""Of each budget of network evaluations, confirmation included, where the plan does not say."""
OnTrial = Callable[[TrialResult], None]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is beside the search itself."""

    labels: str = "random"
    """Class labels: random (as in the paper), balanced, or a class number."""
    precision: str = "fp32"
    """Precision of the network: fp32, bf16 or fp16. The sampler's state stays float64."""
    micro_batch: int = MICRO_BATCH
    """Images that the network sees at once, at most --chunk-size: a GPU makes most a second with 256 and more."""
    guide: str | None = None
    """Guiding model (autoguidance) if the space searches guidance; without it the model itself, without labels, guides
    (classifier-free guidance)."""
    concurrent: int | None = None
    """On Ray: trials that run at a time and share the actors (default: two per actor, 4 to 64)."""
    budget_gpu_hours: float | None = None
    """Stop in good order after this many hours of all workers together; the speed is measured on the first looks."""
    seed: int = 0
    """Seed of the search's own choices."""
    real: str | None = None
    """Data set of held-out real images: also report their FID, for as many images as the confirmation uses."""
    second_reference: str | None = None
    """Reference of another extractor: the confirmed samplers are also measured by it, and the report says where it
    disagrees. It decides nothing, and samples as many images as the confirmation."""
    grid: int = 50
    """Images in each grid of the report."""
    export: bool = False
    """Also put best-sampler.yaml into the model directory, where `--sampler MODEL` finds it."""

    def check(self) -> None:
        """Raises InputError for what is out of range."""
        check_precision(self.precision)
        hours = self.budget_gpu_hours
        if hours is not None and not 0 < hours < math.inf:
            raise InputError(f"--budget-gpu-hours {hours} is not allowed: greater than 0, finite")
        if self.concurrent is not None and self.concurrent < 1:
            raise InputError(f"--concurrent {self.concurrent}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(SweepOptions):
    """As a program gives them; the command has an option of its own for budgets."""

    nfe: Sequence[int] = ()
    """Budgets of network evaluations an image: a race for each."""


@dataclass(frozen=True, kw_only=True)
class SweepTask:
    """A sweep that was checked; `run` does it."""

    model: Model
    reference: OpenedReference
    space: Space
    out: str
    plan: SweepPlan
    options: SweepOptions
    races: Races
    held_out: DataSet | None
    second: OpenedReference | None

    @property
    def confirm_images(self) -> int:
        return self.plan.confirm_chunks * self.plan.chunk_size

    @property
    def budgets(self) -> tuple[int, ...]:
        """Of network evaluations; none where one race searches the space as it is."""
        return tuple(each.nfe for each in self.races.drivers if each.nfe is not None)

    @property
    def most_calls(self) -> int:
        """Network calls of one image, at most: of every race its most images by its longest sampler."""
        return sum(most * longest_nfe(each) for each, most in zip(self.races.drivers, self.races.most_images_of_each))

    @property
    def second_images(self) -> int:
        """Images that the second reference wants, at most."""
        return sum(self._second_images_of(each) for each in self.races.drivers)

    @property
    def second_calls(self) -> int:
        """Network calls of these, as images times evaluations."""
        return sum(self._second_images_of(each) * longest_nfe(each) for each in self.races.drivers)

    def _second_images_of(self, driver: Driver) -> int:
        return 0 if self.second is None else driver.search.budget.num_confirmed * self.confirm_images

    def describe(self) -> str:
        return f"sweep of {self.space.name}: {self.races.describe()}"

    def run(self, on: Executor, on_trial: OnTrial = lambda result: None, commands: Sequence[str] = ()) -> Sweep:
        """commands: what the report says was typed, and may be typed next."""
        if isinstance(on, Ray):
            self._refuse_own_samplers()
        with hold(self.out, "sweep"):
            return self._run(on, on_trial, commands)

    def _run(self, on: Executor, on_trial: OnTrial, commands: Sequence[str]) -> Sweep:
        started = time.monotonic()
        spec = EvaluationSpec(
            model=self.model,
            extractors=(self.reference.extractor, PIXELS),
            store=uris.join(self.out, CHUNKS),
            labels=self.options.labels,
            precision=self.options.precision,
            micro_batch=self.options.micro_batch,
        )
        measured = Plan(metrics=("fid",), reference=self.reference.reference)
        context = Context(
            title=f"The best sampler for {self.model.about.get('dataset', 'this model')}",
            reference=self.reference.describe(),
            commands=tuple(commands),
        )
        if self.budgets:
            save_by_budget(self.out, self.budgets, dataclasses.replace(context, unfinished=True))
        keep = _KeepProgress(self, context, on_trial)
        with on.session(spec.recipe()):
            real = None
            if self.held_out is not None:
                extractors = [self.reference.extractor]
                [held_out] = measure_real(self.held_out, self.confirm_images, [measured], extractors, spec.store, on)
                real = held_out.measured.fid
            with fid_meter(spec, measured, on, self._concurrent(on)) as meter:
                self._propose(meter.sampling, spec, on.device)
                self._search(meter, spec.store, on, keep)
                activity.stage("drawing the report and its samples")
                results = tuple(result_of(driver) for driver in self.races.drivers)
                shown = [self._shown(*pair) for pair in zip(self.races.drivers, results, strict=True)]
                balanced = dataclasses.replace(spec, labels="balanced", micro_batch=MICRO_BATCH)
                grids = [self._grids(balanced, each, meter.sampling, on.device) for each in shown]
            if self.second is not None:
                results = with_second_opinions(results, self.second, spec, self.plan, on)
        about = {} if real is None else {"n": str(real.n), "fid": f"{real.fid:.3f}", "se": f"{real.se:.3f}"}
        if real is not None and self.held_out is not None:
            about |= {"dataset": self.held_out.name, "debiased": real.bias_removed()}
        context = dataclasses.replace(context, real=about or None, seconds=time.monotonic() - started)
        report = self._save(results, grids, context)
        if self.options.export:
            self._export(results)
        return Sweep(results=results, out=self.out, report=report)

    def _save(self, results: tuple[SweepResult, ...], grids: Sequence[dict[str, bytes]], context: Context) -> str:
        """Samplers and pages, of each race and of all; the path of the page of all."""
        page, notes = "", better_elsewhere(results) if self.budgets else {}
        for result, pictures in zip(results, grids, strict=True):
            if result.nfe is not None and result.of(result.best) is None:
                continue  # said on the page of all
            place = self.place(result.nfe)
            self._write(place, BEST_SAMPLER, best_sampler_yaml(result, **self._source))
            about = dataclasses.replace(context, grids=pictures, note=notes.get(result.nfe or 0, ""))
            page = save_report(place, result, about)
        if not self.budgets:
            return page
        page = write_budgets_page(self.out, results, (), context)
        self._write(self.out, BEST_SAMPLERS, best_samplers_yaml(results, **self._source))
        save_by_budget(self.out, self.budgets, context)
        return page

    def _export(self, results: tuple[SweepResult, ...]) -> None:
        """Into the model's directory, if it still holds the model. Raises InputError otherwise."""
        require_unchanged(self.model)
        if self.budgets:
            self._write(self.model.uri, BEST_SAMPLERS, best_samplers_yaml(results, **self._source))
        else:
            self._write(self.model.uri, BEST_SAMPLER, best_sampler_yaml(results[0], **self._source))

    @property
    def _source(self) -> dict[str, str]:
        """What samplers were found for."""
        guide = {} if self.model.guide is None else {"guide": self.model.guide.hash}
        precision = {} if self.options.precision == "fp32" else {"precision": self.options.precision}
        return {"model": self.model.hash, **guide, **precision, "reference_data": self.reference.describe()}

    @staticmethod
    def _write(place: str, name: str, text: str) -> None:
        uris.write_bytes(uris.join(place, name), text.encode())

    def place(self, nfe: int | None) -> str:
        """Where the report of a race goes."""
        return self.out if nfe is None else folder(self.out, nfe)

    def _refuse_own_samplers(self) -> None:
        """Trials carry samplers in their flat form, and other processes know edm_ray's solvers only."""
        choices = getattr(self.space.search.get("solver"), "choices", ())
        given = [each for driver in self.races.drivers for each in driver.search.registry.samplers.values()]
        classes = [*map(type, given), *(SOLVERS[name] for name in choices)]
        for cls in classes:
            if not cls.__module__.startswith("edm_ray."):
                raise InputError(f"{cls.__qualname__}: a sweep over a sampler class of your own runs on edm.Local()")

    def _concurrent(self, on: Executor) -> int:
        """Evaluations under way at once."""
        if not isinstance(on, Ray):
            return 1
        from edm_ray.distributed.sweep import concurrency

        return self.options.concurrent or concurrency(on.workers)

    def _propose(self, sampling: Maker, spec: EvaluationSpec, device: str) -> None:
        """Stage 0 of a sweep by budget: noise levels from trajectories of the model, as starts of its races."""
        if not self.races.wants_candidates:
            return
        denoiser = self.races.drivers[0].search.registry.denoiser  # loaded when the sweep was planned
        bounds = self.space.sampler.sigma_range(denoiser)
        blocks = blocks_of(self.model.hash, spec.labels, device, denoiser.shape, bounds)
        activity.stage(f"choosing noise levels on {NUM_IMAGES} trajectories of the model")
        make_all(sampling, [(block,) for block in blocks])
        self.races.propose(read_trajectories(spec.store, blocks, math.prod(denoiser.shape)))

    def _search(self, meter: FidMeter, store: str, on: Executor, on_trial: OnTrial) -> None:
        """As trials of Ray Tune on a cluster, one evaluation after the other here; the decisions are the same."""
        hours = self.options.budget_gpu_hours
        if hours is not None:
            limit_hours(self.races, hours, meter.sampling, on.size, meter.generator, store, self.out)
        if isinstance(on, Ray):
            from edm_ray.distributed.pool import Pool
            from edm_ray.distributed.sweep import sweep_on_ray

            assert isinstance(meter.sampling, Pool)
            sweep_on_ray(meter.sampling, meter.generator, self.races, self.out, on_trial, self._concurrent(on))
            return

        def measure(asked: Evaluation) -> Any:
            return meter.fid(asked.settings.to_dict(), asked.seeds, asked.chunks, self.plan.chunk_size)

        search_driver.run(self.races, measure, on_trial)

    def _shown(self, driver: Driver, result: SweepResult) -> dict[str, Sampler]:
        """Title -> sampler: plain sampling, the paper's setting and what was found; none of a budget that failed."""
        found = result.of(result.found) or result.of(result.best)
        if found is None and self.budgets:
            return {}
        found = found or result.require_best()
        registry = driver.search.registry
        plain = self.space.sampler if result.plain == DETERMINISTIC else registry.samplers[result.plain]
        shown = {result.plain if result.nfe is None else f"unsearched: {result.plain}": plain}
        if registry.paper is not None and registry.paper not in (found.label, result.plain):
            shown[f"the paper's setting: {registry.paper}"] = registry.samplers[registry.paper]
        shown[f"found: {found.label}"] = found.settings
        return shown

    def _grids(
        self, spec: EvaluationSpec, shown: Mapping[str, Sampler], sampling: Maker, device: str
    ) -> dict[str, bytes]:
        """Caption -> PNG, of the same seeds."""
        images = sample_grids(spec, list(shown.values()), range(self.options.grid), sampling, device)
        last = self.options.grid - 1
        return {f"{title}, seeds 0..{last}": self._png(each) for title, each in zip(shown, images, strict=True)}

    def _png(self, images: np.ndarray) -> bytes:
        """One class per row, named."""
        names, classes = list[str](), self.model.config.network.label_dim
        if classes:
            labels = labels_of(torch.arange(len(images)), classes, "balanced", self.model.empty_classes)
            images, names = rows_by_class(images, labels.numpy(), GRID_COLUMNS, self.model.class_names)
        scale = max(1, 48 // images.shape[-1])
        grid = image_grid(images, GRID_COLUMNS, scale, gap=GRID_GAP)
        return grid_png(grid, {}, names, images.shape[2] * scale + GRID_GAP)


class _KeepProgress:
    """Hands trials on, keeps a report so far now and then, and that of each budget as its race ends."""

    def __init__(self, task: SweepTask, context: Context, on_trial: OnTrial) -> None:
        self.task, self.context, self.on_trial, self.count, self.saved = task, context, on_trial, 0, -math.inf
        self.ended = 0

    def __call__(self, result: TrialResult) -> None:
        self._keep_ended()
        if self.count and time.monotonic() - self.saved > SAVE_SECONDS:
            driver = self.task.races.current
            save_progress(self.task.place(driver.nfe), result_of(driver), self.context)
            self.saved = time.monotonic()
        self.count += 1
        self.on_trial(result)

    def _keep_ended(self) -> None:
        drivers = self.task.races.drivers
        while self.task.budgets and self.ended < len(drivers) and drivers[self.ended].finished:
            result = result_of(drivers[self.ended])
            if result.of(result.best) is not None:
                save_report(self.task.place(result.nfe), result, self.context)
            self.ended += 1


def plan_sweep(
    model: str | Model | ModelDenoiser,
    reference: str | OpenedReference,
    space: str | Space | None,
    out: str,
    plan: SweepPlan,
    options: SweepOptions,
    nfe: Sequence[int] = (),
) -> SweepTask:
    """Open and check everything. Raises InputError for what cannot be searched.

    nfe: budgets of network evaluations, each a race of its own; they share ``plan.budget_images``.
    """
    options.check()
    check_micro_batch(options.micro_batch, max(MICRO_BATCH, plan.chunk_size))
    opened_space = _open_space(space, nfe)
    spaces = _spaces(opened_space, plan, nfe)
    opened = model_of(model, options.guide)
    guides = any(name.startswith("guidance") for name in opened_space.search)
    if guides and opened.guide is None and not opened.config.network.label_dim:
        raise InputError(
            f"{opened_space.name}: searches guidance, but {opened.uri} has no classes; give --guide MODEL too"
        )
    against = reference_of(reference)
    require_fit(against, opened)
    _require_no_other_sweep(uris.absolute(out), bool(nfe))
    held_out = None if options.real is None else open_dataset(uris.absolute(options.real))
    if held_out is not None:
        require_real(held_out, plan.confirm_chunks * plan.chunk_size)
    images = plan.budget_images or (BUDGET_IMAGES * len(spaces) if nfe else None)
    own = dataclasses.replace(plan, budget_images=None if images is None else images // len(spaces))
    denoiser = opened.denoiser()
    return SweepTask(
        model=opened,
        reference=against,
        space=opened_space,
        out=uris.absolute(out),
        plan=plan,
        options=options,
        races=Races([Driver(each, own, options.seed, denoiser) for each in spaces]),
        held_out=held_out,
        second=open_second(options.second_reference, against, opened),
    )


def _require_no_other_sweep(out: str, by_budget: bool) -> None:
    """Raises InputError for a folder with a sweep by budget where this one is not, and the other way round: their files
    would be taken for those of one sweep."""
    there = is_by_budget(out)
    if there and not by_budget:
        raise InputError(f"--out {out}: holds a sweep by budget (--nfe); give another place for this one")
    if by_budget and not there and any(uris.exists(uris.join(out, name)) for name in (RESULT, PROGRESS)):
        raise InputError(f"--out {out}: holds a sweep without --nfe; give another place for this one")


def _open_space(space: str | Space | None, nfe: Sequence[int]) -> Space:
    if space is None and not nfe:
        raise InputError(
            "give --space SPACE, or --nfe BUDGETS, which has a space of its own: e.g. --nfe 5,8,10 for the best "
            "sampler at each of these numbers of network evaluations"
        )
    given = BY_BUDGET if space is None else space
    return load_space(space_file(given)) if isinstance(given, str) else given


def _spaces(space: Space, plan: SweepPlan, nfe: Sequence[int]) -> list[Space]:
    """The space, or at each budget, the least first."""
    for budget in nfe:
        if type(budget) is not int or budget < 1:
            raise InputError(f"--nfe {budget!r} is not allowed: whole numbers of network evaluations, 1 or more")
    if nfe and plan.objective != ("fid",):
        raise InputError(f"--objective {','.join(plan.objective)} is not allowed with --nfe, which has a race a budget")
    return [at_budget(space, budget) for budget in sorted(set(nfe))] or [space]


def sweep(
    model: str | Model | ModelDenoiser,
    reference: str | OpenedReference,
    space: str | Space | None,
    out: str,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    plan: SweepPlan = SweepPlan(),  # noqa: B008 (frozen)
    on_trial: OnTrial = lambda result: None,
    **options: Any,
) -> Sweep:
    """The best sampler for a model, with error bars: `.best`, `.against_deterministic`, `.table`, `.report`.

    model: a directory, or what `load_model` gave. reference: a directory that `reference` wrote. space: the name of one
    that comes with the package, a file, or a `Space`. out: where chunks, report.html, sweep.json and best-sampler.yaml
    go; the same call resumes. plan: `sweep_plan(strategy="race", max_chunks=64, ...)`. options: fields of
    `SweepOptions`, and ``nfe=(5, 8)``, budgets of network evaluations: the best sampler for each, as `.at(8)`,
    `.budgets` and in best-samplers.yaml; the space is then `any-budget` where it is None.
    Raises InputError (a ValueError) for what cannot be searched.
    """
    asked = read_options(BudgetOptions, options)
    return plan_sweep(model, reference, space, out, plan, asked, asked.nfe).run(on, on_trial)
