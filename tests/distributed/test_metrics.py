"""Metrics as tasks give what one process gives, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed import metrics as metrics_module
from edm_ray.distributed.chunks import Generator, write_chunk
from edm_ray.distributed.evaluate import chunks_for
from edm_ray.distributed.metrics import Metrics
from edm_ray.evaluation.measure import Plan, measure
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import Reference
from edm_ray.evaluation.reference_features import KeptFeatures

D = 24


@pytest.mark.ray
@pytest.mark.parametrize("worth_a_task", [D, D + 1], ids=["a task for each FID", "one task"])
@pytest.mark.parametrize("names", [("fid",), ("fid", "kid", "prc")])
def test_an_evaluation_by_tasks_is_that_of_one_process(ray_session, tmp_path, monkeypatch, worth_a_task, names):
    monkeypatch.setattr(metrics_module, "WORTH_A_TASK", worth_a_task)
    rng = np.random.default_rng(0)
    real = rng.integers(0, 1 << 15, (400, D), np.int32)
    reference = Reference(
        moments=Moments.of(real, "e", 14), dataset="d", dataset_hash="h", extractor_name="x", weights_sha256="w"
    )
    plan = Plan(metrics=names, reference=reference, kept=KeptFeatures(features=real, rows=np.arange(400)))
    made = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")
    chunks = chunks_for(made, sampler(num_steps=4), 30, 250)
    features = rng.integers(0, 1 << 15, (300, D), np.int32)
    for i, chunk in enumerate(chunks):
        write_chunk(str(tmp_path), chunk, features[100 * i : 100 * i + 100], ("this", "that", "this")[i])
    metrics = Metrics(plan)
    assert len(metrics.tasks) == (11 if worth_a_task == D else 1)
    answer = metrics.end(metrics.begin(str(tmp_path), chunks, range(30, 280)))
    assert answer.measured == measure(features[30:280], np.arange(30, 280), plan)
    assert answer.made_on == ("that", "this") and answer.measured.fid.n == 250
