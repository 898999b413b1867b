"""Sweep: the best sampler for a model, chosen by a strategy, confirmed on fresh seeds."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.diffusion.samplers import SOLVERS, Sampler
from edm_ray.distributed.executor import Ray
from edm_ray.errors import InputError
from edm_ray.evaluation.grids import image_grid
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.parts import measure_real
from edm_ray.evaluation.reference import PIXELS
from edm_ray.execution.executor import Executor, Maker
from edm_ray.execution.local import Local
from edm_ray.generation.evaluate import EvaluationSpec, FidMeter, fid_meter, sample_grids
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model
from edm_ray.report.html import Context
from edm_ray.report.saved import save_progress, save_report
from edm_ray.search import driver as search_driver
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan
from edm_ray.search.result import Confirmed, SweepResult, result_of
from edm_ray.search.sampler_file import BEST_SAMPLER, best_sampler_yaml
from edm_ray.search.space import Space, load_space
from edm_ray.search.statistics import Difference
from edm_ray.search.time_budget import limit_hours
from edm_ray.search.trials import Evaluation, TrialResult
from edm_ray.storage import uris
from edm_ray.storage.lease import hold
from edm_ray.tasks.given import OpenedReference, model_of, reference_of
from edm_ray.tasks.options import read_options

SAVE_SECONDS = 5.0
"""A report so far is kept at most so often."""
OnTrial = Callable[[TrialResult], None]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is beside the search itself."""

    labels: str = "random"
    """random (as in the paper), balanced, or a class number."""
    guide: str | None = None
    """Model directory of the model that guides it, where the space searches guidance; without it guidance is
    classifier-free: the model itself without its labels."""
    concurrent: int | None = None
    """On Ray: trials in flight at once; they share the actors (default: two for each of them, 4 to 64)."""
    budget_gpu_hours: float | None = None
    """Stop in good order at so many hours of all workers together; the speed is measured on the first looks."""
    seed: int = 0
    """Of the search's own choices."""
    real: str | None = None
    """Data set of held-out real images: their FID at the confirmation's n is reported beside."""
    grid: int = 50
    """Images in each sample grid of the report."""
    export: bool = False
    """Put best-sampler.yaml into the model directory too; then `--sampler MODEL` takes it from there."""

    def check(self) -> None:
        """Raises InputError for what is out of range."""
        hours = self.budget_gpu_hours
        if hours is not None and not 0 < hours < math.inf:
            raise InputError(f"--budget-gpu-hours {hours} is not allowed: greater than 0, finite")
        if self.concurrent is not None and self.concurrent < 1:
            raise InputError(f"--concurrent {self.concurrent}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep found, and where its report is."""

    result: SweepResult
    out: str
    report: str
    """The page, OUT/report.html."""

    @property
    def best(self) -> Sampler:
        """The recommended sampler: the winner, unless fresh seeds show no gain over deterministic sampling."""
        return self.result.require_best().settings

    @property
    def against_deterministic(self) -> Difference | None:
        """FID of the recommended sampler minus that of deterministic sampling, paired on fresh seeds; None where it is
        deterministic sampling itself."""
        return self.result.require_best().against_deterministic

    @property
    def table(self) -> list[dict[str, Any]]:
        """The confirmed samplers, the best first: plain values."""
        return [_row(entry) for entry in sorted(self.result.confirmed, key=lambda e: e.estimate.debiased)]


def _row(entry: Confirmed) -> dict[str, Any]:
    gain = entry.against_deterministic
    return {
        "label": entry.label,
        "sampler": entry.settings.to_dict(),
        "nfe": entry.settings.nfe,
        "fid": entry.estimate.fid,
        "se": entry.estimate.se,
        "n": entry.estimate.n,
        "against_deterministic": None if gain is None else gain.gap,
        "interval": None if gain is None else (gain.low, gain.high),
        "probability_best": entry.probability_best,
    }


@dataclass(frozen=True, kw_only=True)
class SweepTask:
    """A sweep that was checked; `run` does it."""

    model: Model
    reference: OpenedReference
    space: Space
    out: str
    plan: SweepPlan
    options: SweepOptions
    driver: Driver
    held_out: DataSet | None

    @property
    def confirm_images(self) -> int:
        return self.plan.confirm_chunks * self.plan.chunk_size

    def describe(self) -> str:
        return f"sweep of {self.space.name}: {self.driver.describe()}"

    def run(self, on: Executor, on_trial: OnTrial = lambda result: None, commands: Sequence[str] = ()) -> Sweep:
        """commands: what the report says was typed, and may be typed next."""
        if isinstance(on, Ray):
            self._refuse_own_samplers()
        with hold(self.out, "sweep"):
            return self._run(on, on_trial, commands)

    def _run(self, on: Executor, on_trial: OnTrial, commands: Sequence[str]) -> Sweep:
        started, driver = time.monotonic(), self.driver
        spec = EvaluationSpec(
            model=self.model,
            extractors=(self.reference.extractor, PIXELS),
            store=uris.join(self.out, "chunks"),
            labels=self.options.labels,
        )
        measured = Plan(metrics=("fid",), reference=self.reference.reference)
        context = Context(
            title=f"The best sampler for {self.model.about.get('dataset', 'this model')}",
            reference=self.reference.describe(),
            commands=tuple(commands),
        )
        keep = _KeepProgress(lambda: save_progress(self.out, result_of(driver), context), on_trial)
        with on.session(spec.recipe()):
            real = None
            if self.held_out is not None:
                extractors = [self.reference.extractor]
                [held_out] = measure_real(self.held_out, self.confirm_images, [measured], extractors, spec.store, on)
                real = held_out.measured.fid
            with fid_meter(spec, measured, on, self._concurrent(on)) as meter:
                self._search(meter, spec.store, on, keep)
                result = result_of(driver)
                grids = self._grids(dataclasses.replace(spec, labels="balanced"), result, meter.sampling, on.device)
        about = {} if real is None else {"n": str(real.n), "fid": f"{real.fid:.3f}", "se": f"{real.se:.3f}"}
        if real is not None and self.held_out is not None:
            about |= {"dataset": self.held_out.name, "debiased": f"{real.debiased:.3f}"}
        context = dataclasses.replace(context, grids=grids, real=about or None, seconds=time.monotonic() - started)
        guide = {} if self.model.guide is None else {"guide": self.model.guide.hash}
        text = best_sampler_yaml(
            result, model=self.model.hash, **guide, reference_data=self.reference.describe()
        ).encode()
        for place in (self.out, *([self.model.uri] if self.options.export else [])):
            uris.write_bytes(uris.join(place, BEST_SAMPLER), text)
        return Sweep(result=result, out=self.out, report=save_report(self.out, result, context))

    def _refuse_own_samplers(self) -> None:
        """Trials carry samplers in their flat form, and other processes know edm_ray's solvers only."""
        choices = getattr(self.space.search.get("solver"), "choices", ())
        classes = [*map(type, self.driver.search.registry.samplers.values()), *(SOLVERS[name] for name in choices)]
        for cls in classes:
            if not cls.__module__.startswith("edm_ray."):
                raise InputError(f"{cls.__qualname__}: a sweep over a sampler class of your own runs on edm.Local()")

    def _concurrent(self, on: Executor) -> int:
        """Evaluations under way at once."""
        if not isinstance(on, Ray):
            return 1
        from edm_ray.distributed.sweep import concurrency

        return self.options.concurrent or concurrency(on.workers)

    def _search(self, meter: FidMeter, store: str, on: Executor, on_trial: OnTrial) -> None:
        """As trials of Ray Tune on a cluster, one evaluation after the other here; the decisions are the same."""
        driver, hours = self.driver, self.options.budget_gpu_hours
        if hours is not None:
            limit_hours(driver, hours, meter.sampling, on.size, meter.generator, store, self.out)
        if isinstance(on, Ray):
            from edm_ray.distributed.pool import Pool
            from edm_ray.distributed.sweep import sweep_on_ray

            assert isinstance(meter.sampling, Pool)
            sweep_on_ray(meter.sampling, meter.generator, driver, self.out, on_trial, self._concurrent(on))
            return

        def measure(asked: Evaluation) -> Any:
            return meter.fid(asked.settings.to_dict(), asked.seeds, asked.chunks, self.plan.chunk_size)

        search_driver.run(driver, measure, on_trial)

    def _grids(self, spec: EvaluationSpec, result: SweepResult, sampling: Maker, device: str) -> dict[str, bytes]:
        """Caption -> PNG: deterministic sampling, the paper's setting and what was found, of the same seeds."""
        found = result.of(result.found) or result.require_best()
        shown = {"deterministic": self.space.sampler}
        registry = self.driver.search.registry
        if registry.paper is not None and registry.paper != found.label:
            shown[f"the paper's setting: {registry.paper}"] = registry.samplers[registry.paper]
        shown[f"found: {found.label}"] = found.settings
        images = sample_grids(spec, list(shown.values()), range(self.options.grid), sampling, device)
        last = self.options.grid - 1
        return {f"{title}, seeds 0..{last}": _png(each) for title, each in zip(shown, images, strict=True)}


class _KeepProgress:
    """Hands trials on, and keeps a report so far now and then."""

    def __init__(self, save: Callable[[], None], on_trial: OnTrial) -> None:
        self.save, self.on_trial, self.count, self.saved = save, on_trial, 0, -math.inf

    def __call__(self, result: TrialResult) -> None:
        if self.count and time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()
            self.saved = time.monotonic()
        self.count += 1
        self.on_trial(result)


def _png(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image_grid(images, 10, max(1, 48 // images.shape[-1]), gap=4).save(buffer, format="PNG")
    return buffer.getvalue()


def plan_sweep(
    model: str | Model | ModelDenoiser,
    reference: str | OpenedReference,
    space: str | Space,
    out: str,
    plan: SweepPlan,
    options: SweepOptions,
) -> SweepTask:
    """Open and check everything. Raises InputError for what cannot be searched."""
    options.check()
    opened_space = load_space(space) if isinstance(space, str) else space
    opened = model_of(model, options.guide)
    guides = any(name.startswith("guidance") for name in opened_space.search)
    if guides and opened.guide is None and not opened.config.network.label_dim:
        raise InputError(
            f"{opened_space.name}: searches guidance, but {opened.uri} has no classes; give --guide MODEL too"
        )
    held_out = None if options.real is None else open_dataset(uris.absolute(options.real))
    driver = Driver(opened_space, plan, options.seed, opened.denoiser())
    return SweepTask(
        model=opened,
        reference=reference_of(reference),
        space=opened_space,
        out=uris.absolute(out),
        plan=plan,
        options=options,
        driver=driver,
        held_out=held_out,
    )


def sweep(
    model: str | Model | ModelDenoiser,
    reference: str | OpenedReference,
    space: str | Space,
    out: str,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    plan: SweepPlan = SweepPlan(),  # noqa: B008 (frozen)
    on_trial: OnTrial = lambda result: None,
    **options: Any,
) -> Sweep:
    """The best sampler for a model, with error bars: `.best`, `.against_deterministic`, `.table`, `.report`.

    model: a directory, or what `load_model` gave. reference: a directory that `reference` wrote. space: a file of
    tune_spaces/, or a `Space`. out: where chunks, report.html, sweep.json and best-sampler.yaml go; the same call
    resumes. plan: `sweep_plan(strategy="race", max_chunks=64, ...)`. options: fields of `SweepOptions`.
    Raises InputError (a ValueError) for what cannot be searched.
    """
    return plan_sweep(model, reference, space, out, plan, read_options(SweepOptions, options)).run(on, on_trial)
