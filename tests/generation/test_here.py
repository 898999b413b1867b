"""Evaluation in this process: real images, snapshots of a run, grids; all by way of the store. No Ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edm_ray.cli import main
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.chunks import POOL_START
from edm_ray.evaluation.measure import measure, plan_all
from edm_ray.evaluation.parts import measure_real
from edm_ray.evaluation.reference import PIXELS
from edm_ray.execution.local import Local
from edm_ray.generation.evaluate import EvaluationSpec, evaluate, evaluate_models, sample_grids
from edm_ray.generation.features import FeatureWorker
from edm_ray.generation.generate import generate
from edm_ray.models import load_model, open_model


@pytest.fixture(scope="module")
def measured(digits_dir, tmp_path_factory):
    """A plan with all metrics, and its extractor."""
    out = str(tmp_path_factory.mktemp("reference") / "r")
    data = ["--data", str(digits_dir / "train"), "--out", out, "--extractor", "digits", "--features", "150"]
    assert main(["reference", *data]) == 0
    plans, extractors = plan_all(("fid", "kid", "isc", "prc"), [out])
    return plans, extractors


def test_real_images_are_measured_class_by_class_with_the_features_of_one_pass(measured, digits_dir, tmp_path):
    plans, extractors = measured
    dataset, num = open_dataset(str(digits_dir / "train")), 1100  # in three parts
    [result] = measure_real(dataset, num, plans, extractors, str(tmp_path), Local())
    with open_reader(dataset) as pixels:
        features = extractors[0].load().extract(torch.from_numpy(pixels.images[:num]))
        rank = np.empty(num, np.int64)
        rank[np.argsort(pixels.labels[:num], kind="stable")] = np.arange(num)
    assert result.measured == measure(features, rank, plans[0])
    assert len(list((tmp_path / "part").rglob("*.safetensors"))) == 3


def test_snapshots_are_evaluated_one_after_the_other_and_never_twice(measured, tiny_model, tmp_path, monkeypatch):
    plans, extractors = measured
    spec = EvaluationSpec(model=open_model(tiny_model), extractors=tuple(extractors), store=str(tmp_path))
    three, plan = sampler(num_steps=3), plans[0]
    models = [(100, tiny_model), (200, tiny_model)]
    rows = list(evaluate_models(models, spec, three, 150, plan, Local()))
    seeds = torch.arange(150) + POOL_START["evaluate"]
    features = extractors[0].load().extract(generate(load_model(tiny_model), seeds, three))
    assert [nimg for nimg, _ in rows] == [100, 200]
    assert all(result.measured == measure(features, seeds.numpy(), plan) for _, result in rows)
    monkeypatch.setattr(FeatureWorker, "make", lambda self, item: pytest.fail("sampled again"))
    assert list(evaluate_models(models, spec, three, 150, plan, Local())) == rows
    [[again]] = evaluate(spec, three, [POOL_START["evaluate"]], 150, [plan], Local())
    assert again == rows[0][1]


def test_grids_hold_the_images_of_their_seeds(tiny_model, tmp_path):
    spec = EvaluationSpec(model=open_model(tiny_model), extractors=(PIXELS,), store=str(tmp_path), labels="balanced")
    samplers = [sampler(num_steps=2), sampler(num_steps=3, s_churn=1.0)]
    with Local().open(spec.recipe()) as (sampling,):
        grids = sample_grids(spec, samplers, range(20), sampling, "cpu")
    for grid, each in zip(grids, samplers, strict=True):
        assert np.array_equal(grid, generate(load_model(tiny_model), torch.arange(20), each, "balanced").numpy())
