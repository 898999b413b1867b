"""Evaluate samplers of a model on an executor: images are sampled, their features stored, the sets measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_ray.diffusion.samplers import Sampler
from edm_ray.evaluation.chunks import (
    CHUNK_IMAGES,
    POOL_START,
    Chunk,
    Generator,
    SampledImages,
    chunks_for,
    first_chunks,
    read_rows,
)
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.fid_worker import Measurement, MeasureSets, SetResult
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.reference import PIXELS, ExtractorSpec
from edm_ray.execution import activity
from edm_ray.execution.executor import Executor, Maker, OnProgress, make_all, no_progress
from edm_ray.generation.features import GenerateFeatures
from edm_ray.generation.generate import MICRO_BATCH
from edm_ray.models.directory import Model, open_model


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """What every evaluation of one model shares: who samples, what looks at the images, where chunks are kept."""

    model: Model
    extractors: tuple[ExtractorSpec, ...]
    """Features of all of them are taken of the same images."""
    store: str
    labels: str = "random"
    precision: str = "fp32"
    micro_batch: int = MICRO_BATCH

    def generator(self, extractor: str, device: str) -> Generator:
        """extractor: its identity."""
        return Generator(
            model=self.model.hash,
            extractor=extractor,
            labels=self.labels,
            micro_batch=self.micro_batch,
            device=device,
            precision=self.precision,
        )

    def recipe(self, threads: int | None = 1) -> GenerateFeatures:
        return GenerateFeatures(model=self.model, extractors=self.extractors, store=self.store, threads=threads)


def evaluate(
    spec: EvaluationSpec,
    sampler: Sampler,
    starts: Sequence[int],
    num_images: int,
    plans: Sequence[Plan],
    executor: Executor,
    on_chunk: OnProgress = no_progress,
) -> list[list[SetResult]]:
    """Measure ``num_images`` images for each first seed in ``starts``, by each plan: [start][plan].

    Images are sampled once for all plans. ``on_chunk(done, total)`` says how far it is.
    """
    sets = chunks_of_sets(spec, sampler, starts, num_images, plans, executor.device)
    # Two references may be of one extractor; its chunks are asked for once.
    items = [tuple(dict.fromkeys(same)) for chunks in sets for same in zip(*chunks, strict=True)]
    measuring = MeasureSets(plans=tuple(plans), store=spec.store, most=len(starts) * len(plans))
    measurements = [
        [
            Measurement(plan=key, images=SampledImages(chunks=tuple(own), within=range(first, first + num_images)))
            for key, own in zip(measuring.keys, chunks, strict=True)
        ]
        for first, chunks in zip(starts, sets, strict=True)
    ]
    with executor.open(spec.recipe(), measuring) as (sampling, fids):
        make_all(sampling, items, on_chunk)
        activity.stage("measuring against the reference")
        make_all(fids, [(one,) for row in measurements for one in row])
    return [[measuring.result(one) for one in row] for row in measurements]


def chunks_of_sets(
    spec: EvaluationSpec, sampler: Sampler, starts: Sequence[int], num_images: int, plans: Sequence[Plan], device: str
) -> list[list[list[Chunk]]]:
    """The chunks of each set of images: [start][plan]."""
    effective = sampler.effective(spec.model.denoiser())
    made = [spec.generator(plan.reference.moments.extractor, device) for plan in plans]
    size = max(CHUNK_IMAGES, spec.micro_batch)
    return [[chunks_for(generator, effective, first, num_images, size) for generator in made] for first in starts]


def evaluate_models(
    models: Sequence[tuple[int, str]],
    spec: EvaluationSpec,
    sampler: Sampler,
    num_images: int,
    plan: Plan,
    executor: Executor,
) -> Iterator[tuple[int, SetResult]]:
    """(nimg, result) for each (nimg, URI of a model directory), such as the snapshots of a run. spec: but for its
    model. A model that was evaluated before takes no time."""
    with executor.session(spec.recipe()):
        for nimg, uri in models:
            own = dataclasses.replace(spec, model=open_model(uri))
            [[result]] = evaluate(own, sampler, [POOL_START["evaluate"]], num_images, [plan], executor)
            yield nimg, result


def sample_images(
    spec: EvaluationSpec,
    sampler: Sampler,
    seeds: range,
    executor: Executor,
    threads: int | None = 1,
    on_chunk: OnProgress = no_progress,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(seeds int64 [n], images uint8 [n, C, H, W]) in parts, in the order of the seeds, by way of the store: a command
    that was killed resumes from the chunks that are there. spec: its extractors are not asked."""
    chunks = _pixel_chunks(spec, sampler, seeds, executor.device)
    ready, following = set[int](), 0
    recipe = dataclasses.replace(spec, extractors=(PIXELS,)).recipe(threads)
    with executor.open(recipe) as (sampling,):
        for count, number in enumerate(sampling.make([(chunk,) for chunk in chunks]), 1):
            on_chunk(count, len(chunks))
            ready.add(number)
            while following in ready:
                for rows in read_rows(spec.store, [chunks[following]], seeds):
                    yield rows.seeds, rows.features
                following += 1


def sample_grids(
    spec: EvaluationSpec, samplers: Sequence[Sampler], seeds: range, sampling: Maker, device: str
) -> list[np.ndarray]:
    """Images uint8 [n, C, H, W] of these seeds, for each sampler. sampling: makes the spec's recipe, with PIXELS among
    the extractors; device: its executor's."""
    chunks = [_pixel_chunks(spec, sampler, seeds, device) for sampler in samplers]
    make_all(sampling, [(chunk,) for own in chunks for chunk in own])
    return [np.concatenate([rows.features for rows in read_rows(spec.store, own, seeds)]) for own in chunks]


def _pixel_chunks(spec: EvaluationSpec, sampler: Sampler, seeds: range, device: str) -> list[Chunk]:
    made = spec.generator(PIXELS.load().identity, device)
    return chunks_for(made, sampler.effective(spec.model.denoiser()), seeds.start, len(seeds), MICRO_BATCH)


@dataclass(frozen=True)
class FidMeter:
    """Measures the samplers that a sweep asks for; networks stay loaded between calls."""

    sampling: Maker
    fids: Maker
    generator: Generator
    recipe: MeasureSets

    def fid(self, settings: Mapping[str, Any], pool: str, count: int, size: int) -> FidEstimate:
        """Of the first ``count`` chunks of a pool of seeds. Raises InputError for settings that give no images."""
        chunks = first_chunks(self.generator, settings, pool, count, size)
        make_all(self.sampling, [(chunk,) for chunk in chunks])
        one = Measurement(plan=self.recipe.keys[0], images=SampledImages(chunks=tuple(chunks)))
        make_all(self.fids, [(one,)])
        return self.recipe.result(one).measured.fid


@contextmanager
def fid_meter(spec: EvaluationSpec, plan: Plan, executor: Executor, most: int = 1) -> Iterator[FidMeter]:
    """A meter against the plan's reference, as long as it is open. most: measurements under way at once."""
    measuring = MeasureSets(plans=(plan,), store=spec.store, most=most)
    generator = spec.generator(plan.reference.moments.extractor, executor.device)
    with executor.open(spec.recipe(), measuring) as (sampling, fids):
        yield FidMeter(sampling, fids, generator, measuring)
