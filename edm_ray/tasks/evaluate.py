"""Evaluate: the metrics of a model with one sampler, against one or several references."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.diffusion.samplers import Heun, Sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.chunks import POOL_START
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.fid_worker import SetResult
from edm_ray.evaluation.measure import Measured, Plan, Row, over_sets, parse_metrics, plan_all
from edm_ray.evaluation.parts import measure_real
from edm_ray.execution.executor import Executor, OnProgress, no_progress
from edm_ray.execution.local import Local
from edm_ray.generation.evaluate import EvaluationSpec, chunks_of_sets, evaluate_models
from edm_ray.generation.evaluate import evaluate as evaluate_sets
from edm_ray.generation.generate import MICRO_BATCH, check_labels, check_micro_batch, check_precision
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model
from edm_ray.storage import uris
from edm_ray.storage.artifacts import is_stored
from edm_ray.storage.lease import hold
from edm_ray.tasks.given import OpenedReference, model_of, references_of, require_fit
from edm_ray.tasks.options import read_options
from edm_ray.training.run import snapshots

FEWEST, MOST = 100, 100_000_000
RESULT, CHUNKS = "evaluation.json", "chunks"
"""Of an evaluation's folder: the numbers, and the features of images, which are not sampled again."""
FORMAT = 2
"""Of that file. 2: of each FID the influences of groups of images, instead of FIDs without them."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How, beside what and how many."""

    metrics: str = "fid"
    """fid, kid, isc (Inception Score), prc (precision and recall), separated by commas; all come from one pass. isc
    needs an extractor with classes."""
    protocol: Literal["interval", "paper"] = "interval"
    """interval: --num images, with an error bar. paper: three sets of --num seeds and their minimum, as in the paper,
    beside mean and interval."""
    labels: str = "random"
    """Class labels: random (as in the paper), balanced, or a class number."""
    precision: str = "fp32"
    """Precision of the network: fp32, bf16 or fp16. The sampler's state stays float64."""
    micro_batch: int = MICRO_BATCH
    """Images that the network sees at once: a GPU makes most images a second with 256 and more. Numbers made with
    another value differ by rounding."""
    guide: str | None = None
    """Guiding model (autoguidance) if the sampler's guidance is not 1; without it the model itself, without labels,
    guides (classifier-free guidance)."""
    real: str | None = None
    """Data set of held-out real images: also report the metrics of its first --num images."""
    store: str | None = None
    """Directory or s3:// URI of a chunk store that many evaluations share; what is there is not sampled again."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured. Comparable only with those of equal n, reference and extractor."""

    model: Model
    sampler: Sampler
    options: EvaluateOptions
    plans: tuple[Plan, ...]
    starts: tuple[int, ...]
    sets: tuple[tuple[SetResult, ...], ...]
    """[first seed][reference]"""
    real: tuple[SetResult, ...] = ()
    """[reference], where held-out real images were given."""
    real_name: str = ""
    """Their data set's."""

    @property
    def fid(self) -> FidEstimate:
        """Of the first set, against the first reference."""
        return self.sets[0][0].measured.fid

    @property
    def made_on(self) -> list[str]:
        """The kinds of device that made the images."""
        return sorted({kind for of_set in self.sets for result in of_set for kind in result.made_on})

    def measured(self, place: int = 0) -> list[Measured]:
        """Of each set, against the reference at ``place``."""
        return [of_set[place].measured for of_set in self.sets]

    def rows(self, place: int = 0) -> list[Row]:
        return self.measured(place)[0].rows()

    def describe(self) -> str:
        return f"{self.fid.describe()}, {self.sampler}, against {self.plans[0].reference.describe()}"

    def how(self) -> str:
        """Sampler, labels, precision and guide, in words."""
        guide = f", guide {self.options.guide}" if self.options.guide else ""
        return f"{self.sampler}, labels {self.options.labels}, {self.options.precision}{guide}"

    def to_dict(self) -> dict[str, Any]:
        """What evaluation.json holds."""
        first, *further = [self._entry(place) for place in range(len(self.plans))]
        options = self.options
        return {
            "format": FORMAT,
            "model": self.model.uri,
            **({"guide": options.guide} if options.guide else {}),
            "model_hash": self.model.hash,
            "sampler": {name: repr(v) if v == float("inf") else v for name, v in self.sampler.to_dict().items()},
            "settings": str(self.sampler),
            "labels": options.labels,
            "precision": options.precision,
            "micro_batch": options.micro_batch,
            "made_on": self.made_on,
            **first,
            **({"further_references": further} if further else {}),
        }

    def _entry(self, place: int) -> dict[str, Any]:
        sets = self.measured(place)
        entry: dict[str, Any] = {
            "reference": self.plans[place].reference.describe(),
            "samples": sets[0].fid.to_dict(),
            "metrics": [{"first_seed": first, **one.to_dict()} for first, one in zip(self.starts, sets, strict=True)],
        }
        if len(sets) > 1:
            entry["protocol"] = [row.to_dict() for row in over_sets(sets)]
        if self.real:
            real = self.real[place].measured
            entry["real"] = {"dataset": self.options.real, **real.fid.to_dict(), "metrics": real.to_dict()}
        return entry


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """An evaluation that was checked; `run` does it."""

    model: Model
    sampler: Sampler
    num: int
    options: EvaluateOptions
    plans: tuple[Plan, ...]
    references: tuple[OpenedReference, ...]
    held_out: DataSet | None
    out: str | None

    @property
    def starts(self) -> tuple[int, ...]:
        """First seeds of the sets of images."""
        return (0, self.num, 2 * self.num) if self.options.protocol == "paper" else (POOL_START["evaluate"],)

    def describe(self, on: Executor) -> list[str]:
        times = f"{len(self.starts)} x {self.num:,}" if len(self.starts) > 1 else f"{self.num:,}"
        lines = [f"would sample {times} images on {on}; sampler: {self.sampler}; {self.sampler.nfe} evaluations each"]
        return lines + [f"  and measure {', '.join(p.metrics)} against {p.reference.describe()}" for p in self.plans]

    def stored(self, on: Executor) -> int:
        """How many of the images need not be sampled: the features that every reference asks for are there."""
        with self.open_spec() as spec:
            sets = chunks_of_sets(spec, self.sampler, self.starts, self.num, self.plans, on.device)
            chunks = [same for of_set in sets for same in zip(*of_set, strict=True)]
            return sum(same[0].size for same in chunks if all(is_stored(spec.store, each) for each in same))

    def run(self, on: Executor, on_chunk: OnProgress = no_progress) -> Evaluation:
        with hold(self.out, "evaluate"):
            return self._run(on, on_chunk)

    def _run(self, on: Executor, on_chunk: OnProgress) -> Evaluation:
        with self.open_spec() as spec:
            sets, real = self._measure(spec, on, on_chunk)
        result = Evaluation(
            model=self.model,
            sampler=self.sampler,
            options=self.options,
            plans=self.plans,
            starts=self.starts,
            sets=tuple(map(tuple, sets)),
            real=tuple(real),
            real_name="" if self.held_out is None else self.held_out.name,
        )
        if self.out is not None:
            uris.write_bytes(uris.join(self.out, RESULT), json.dumps(result.to_dict(), indent=1).encode())
        return result

    def _measure(
        self, spec: EvaluationSpec, on: Executor, on_chunk: OnProgress
    ) -> tuple[list[list[SetResult]], list[SetResult]]:
        """The sets of images by each plan, and the held-out images."""
        with on.session(spec.recipe()):
            sets = evaluate_sets(spec, self.sampler, self.starts, self.num, self.plans, on, on_chunk)
            if self.held_out is None:
                return sets, []
            return sets, measure_real(self.held_out, self.num, self.plans, spec.extractors, spec.store, on)

    @contextlib.contextmanager
    def open_spec(self) -> Iterator[EvaluationSpec]:
        """What all of its sets of images share, as long as its chunks are needed."""
        with self._store() as store:
            yield EvaluationSpec(
                model=self.model,
                extractors=tuple(one.extractor for one in self.references),
                store=store,
                labels=self.options.labels,
                precision=self.options.precision,
                micro_batch=self.options.micro_batch,
            )

    @contextlib.contextmanager
    def _store(self) -> Iterator[str]:
        """Where chunks lie: kept where a place is given, else as long as it takes."""
        if self.options.store is not None:
            yield uris.absolute(self.options.store)
        elif self.out is not None:
            yield uris.join(uris.absolute(self.out), CHUNKS)
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield folder


def plan_evaluation(
    model: str | Model | ModelDenoiser,
    reference: str | OpenedReference | Sequence[str | OpenedReference],
    sampler: Sampler,
    num: int,
    options: EvaluateOptions,
    out: str | None = None,
) -> EvaluationPlan:
    """Open and check everything. Raises InputError for what cannot be evaluated, or compared."""
    if num < FEWEST:
        raise InputError(f"--num {num}: give {FEWEST} or more; FID of fewer images says nothing")
    if num > MOST:
        raise InputError(f"--num {num}: give at most {MOST:,}")
    check_precision(options.precision)
    check_micro_batch(options.micro_batch)
    metrics = parse_metrics(options.metrics)
    opened = model_of(model, options.guide)
    check_labels(options.labels, opened.config.network.label_dim)
    references = references_of(reference)
    for one in references:
        require_fit(one, opened)
    plans, _ = plan_all(metrics, [one.uri for one in references])
    held_out = None if options.real is None else open_dataset(uris.absolute(options.real))
    if held_out is not None and held_out.rows < num:
        raise InputError(f"--real {options.real}: {held_out.rows} images, {num} are needed: compare at equal n only")
    return EvaluationPlan(
        model=opened,
        sampler=sampler,
        num=num,
        options=options,
        plans=tuple(plans),
        references=tuple(references),
        held_out=held_out,
        out=out,
    )


def evaluate(
    model: str | Model | ModelDenoiser,
    reference: str | OpenedReference | Sequence[str | OpenedReference],
    sampler: Sampler = Heun(),  # noqa: B008 (frozen)
    num: int = 50_000,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    out: str | None = None,
    on_chunk: OnProgress = no_progress,
    **options: Any,
) -> Evaluation:
    """FID and other metrics of ``num`` images of a model, with error bars.

    model: a directory, or what `load_model` gave. reference: directories that `reference` wrote, one or several; images
    are sampled once for all. on: `Local()` or `Ray(...)`. out: a directory for evaluation.json and the chunks of
    features, so that a killed evaluation resumes. options: fields of `EvaluateOptions`.

    A sampler class of your own runs on `Local()`. To Ray's workers it travels pickled: a class defined in the script
    that was started goes along; one from a module must be importable there (``ray job submit --working-dir``).
    Raises InputError (a ValueError) for what cannot be evaluated.
    """
    return plan_evaluation(model, reference, sampler, num, read_options(EvaluateOptions, options), out).run(
        on, on_chunk
    )


def follow(
    run: str,
    reference: str | OpenedReference,
    sampler: Sampler = Heun(),  # noqa: B008 (frozen)
    num: int = 500,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    out: str | None = None,
    **options: Any,
) -> Iterator[tuple[int, SetResult]]:
    """(images seen, result) for each snapshot model of a training run, in order; nothing is measured twice.

    Raises InputError for a run without snapshots.
    """
    models = snapshots(uris.absolute(run))
    if not models:
        raise InputError(f"{run}: holds no snapshots; train with --snapshot-kimg N")
    plan = plan_evaluation(models[-1][1], reference, sampler, num, read_options(EvaluateOptions, options), out or run)
    # Not the run's own lease: a training may be writing there.
    own = None if plan.options.store is not None else uris.join(uris.absolute(out or run), CHUNKS)
    with plan.open_spec() as spec, hold(own, "evaluate --follow"):
        yield from evaluate_models(models, spec, sampler, num, plan.plans[0], on)
