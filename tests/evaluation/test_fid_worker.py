"""Measurements as artefacts: those of one process, to the bit, and made once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed.executor import Ray
from edm_ray.evaluation.chunks import Generator, SampledImages, chunks_for, write_chunk
from edm_ray.evaluation.fid_worker import FidWorker, Measurement, MeasureSets
from edm_ray.evaluation.measure import Plan, measure
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import Reference
from edm_ray.evaluation.reference_features import ReferenceFeatures
from edm_ray.execution.executor import make_all
from edm_ray.execution.local import Local
from edm_ray.storage.artifacts import key_of, path_of

D = 24


@pytest.fixture
def stored(tmp_path):
    """250 images in three chunks, made on two kinds of device; a recipe of two plans; what is to be measured."""
    rng = np.random.default_rng(0)
    real = rng.integers(0, 1 << 15, (400, D), np.int32)
    reference = Reference(
        moments=Moments.of(real, "e", 14), dataset="d", dataset_hash="h", extractor_name="x", weights_sha256="w"
    )
    rows = ReferenceFeatures(features=real, rows=np.arange(400))
    plans = (
        Plan(metrics=("fid",), reference=reference),
        Plan(metrics=("fid", "kid", "prc"), reference=reference, reference_features=rows),
    )
    made = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")
    chunks = tuple(chunks_for(made, sampler(num_steps=4), 30, 250))
    features = rng.integers(0, 1 << 15, (300, D), np.int32)
    for i, chunk in enumerate(chunks):
        write_chunk(str(tmp_path), chunk, features[100 * i : 100 * i + 100], ("this", "that", "this")[i])
    recipe = MeasureSets(plans=plans, store=str(tmp_path), most=2)
    images = SampledImages(chunks=chunks, within=range(30, 280))
    return recipe, [Measurement(plan=key, images=images) for key in recipe.keys], features[30:280]


@pytest.mark.parametrize(
    "executor", [Local(), pytest.param(Ray(workers=1), marks=[pytest.mark.ray])], ids=["here", "on Ray"]
)
def test_an_evaluation_by_fid_workers_is_that_of_one_process(request, stored, executor):
    if isinstance(executor, Ray):
        request.getfixturevalue("ray_session")
    recipe, sets, features = stored
    with executor.open(recipe) as (fids,):
        make_all(fids, [(one,) for one in sets])
    for one, plan in zip(sets, recipe.plans, strict=True):
        result = recipe.result(one)
        assert result.measured == measure(features, np.arange(30, 280), plan)
        assert result.made_on == ("that", "this") and result.measured.fid.n == 250


def test_what_was_measured_is_not_measured_again_unless_it_is_damaged(stored, monkeypatch):
    recipe, sets, _ = stored
    made, make = [], FidWorker.make
    monkeypatch.setattr(FidWorker, "make", lambda self, item: made.append(item) or make(self, item))
    for _ in range(2):
        with Local().open(recipe) as (fids,):
            make_all(fids, [(one,) for one in sets])
    assert len(made) == 2
    with open(path_of(recipe.store, sets[0]), "r+b") as file:  # noqa: PTH123
        file.truncate(20)
    with Local().open(recipe) as (fids,):
        make_all(fids, [(one,) for one in sets])
    assert made[2:] == [(sets[0],)]


def test_whatever_decides_the_numbers_is_in_the_key(stored):
    recipe, (one, other), _ = stored
    fewer = dataclasses.replace(one.images, within=range(30, 279))
    groups = MeasureSets(plans=(dataclasses.replace(recipe.plans[0], groups=5),), store="s")
    different = [one, other, dataclasses.replace(one, images=fewer), dataclasses.replace(one, plan=groups.keys[0])]
    assert len({key_of(each) for each in different}) == 4
    reordered = dataclasses.replace(one.images, chunks=one.images.chunks[::-1])
    assert key_of(dataclasses.replace(one, images=reordered)) == key_of(one)
