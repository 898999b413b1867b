"""The fault matrix, samplers, judges and dispatcher: each struck at each moment in each way. The bits are those of a
process that was left alone. Opt-in; `tests/faults.py` is the table."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from edm_ray.cli import main
from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed import pool as pools
from edm_ray.distributed.executor import Ray
from edm_ray.distributed.patience import SILENT
from edm_ray.distributed.pool import Pool, start_pools
from edm_ray.evaluation.chunks import SampledImages, chunks_of, gather
from edm_ray.evaluation.fid_worker import Measurement, MeasureSets
from edm_ray.evaluation.measure import Plan, estimate_fid
from edm_ray.evaluation.reference import open_reference
from edm_ray.execution.executor import make_all
from edm_ray.generation.evaluate import EvaluationSpec
from edm_ray.generation.generate import generate
from edm_ray.models import open_model
from tests.processes import ray_processes
from tests.storage.proxies import s3_server
from tests.strikes import Gate, strike

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(400)]
SIGKILL, SIGSTOP, CUT = "SIGKILL", "SIGSTOP", "cut connection"
GATES = {
    ("sampler", "start"): "sampler starts",
    ("sampler", "first step"): "first chunk",
    ("sampler", "mid-tick"): "in a chunk",
    ("sampler", "saving"): "chunk written",
    ("sampler", "uploading"): "chunk written",
    ("sampler", "confirming"): "first chunk",
    ("judge", "start"): "judge starts",
    ("judge", "mid-tick"): "measurement",
    ("judge", "saving"): "measurement written",
    ("judge", "uploading"): "measurement written",
    ("judge", "confirming"): "measurement",
    ("queue", "start"): "sampler starts",
    ("queue", "first step"): "first chunk",
    ("queue", "mid-tick"): "in a chunk",
    ("queue", "confirming"): "first chunk",
}
"""(victim, moment) -> where a worker waits meanwhile."""
CELLS = [(victim, moment, kind) for victim, moment in GATES for kind in (SIGKILL, SIGSTOP, CUT)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory, digits_dir, digits_reference):
    root, data = tmp_path_factory.mktemp("matrix"), str(digits_dir / "train")
    assert main(["train", "--data", data, "--out", str(root / "run"), "--preset", "tiny", "--no-ray"]) == 0
    return str(root / "run" / "model"), digits_reference


@pytest.fixture(scope="module")
def bucket():
    with s3_server("matrix") as endpoint:
        yield {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "NO_PROXY": "127.0.0.1",
        }


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("victim", "moment", "kind"), CELLS)
def test_a_process_of_a_pool_that_is_struck_at_any_moment_changes_no_bit(
    parts, bucket, tmp_path, monkeypatch, request, victim, moment, kind
):
    gate = Gate(tmp_path / "gate", GATES[victim, moment])
    monkeypatch.setenv(SILENT, "3")
    monkeypatch.setattr(pools, "environment", lambda: {"env_vars": {**gate.variables, **bucket, SILENT: "3"}})
    store = f"s3://matrix/{abs(hash(request.node.name))}" if moment == "uploading" else str(tmp_path / "store")
    model, (reference, extractor) = open_model(parts[0]), open_reference(parts[1])
    spec = EvaluationSpec(model=model, extractors=(extractor,), store=store)
    settings = sampler(num_steps=4).effective(model.denoiser())
    seeds = "confirm" if moment == "confirming" else "search"
    chunks = chunks_of(spec.generator(reference.moments.extractor, "cpu"), settings, seeds, 3, 50)
    measuring = MeasureSets(plans=(Plan(metrics=("fid",), reference=reference),), store=store)
    measurement = Measurement(plan=measuring.keys[0], images=SampledImages(chunks=tuple(chunks)))
    opened = start_pools(Ray(workers=1), [spec.recipe(), measuring])
    try:
        failed: list[BaseException] = []
        work = threading.Thread(target=_work, args=(opened, chunks, measurement, failed))
        work.start()
        pid = gate.reached(meanwhile=work.is_alive)
        if victim == "queue":
            ((pid, _),) = ray_processes("ray::Dispatchers")
        strike(kind, pid)
        gate.open()
        work.join(240)
        assert not work.is_alive(), "it hangs"
        assert not failed, failed
        if kind != CUT:
            _wait_until_gone(pid)
    finally:
        gate.open()
        opened[0].stop()
    features, of = gather(store, chunks)
    denoiser, taken = model.denoiser(), extractor.load()
    calm = np.concatenate([taken.extract(generate(denoiser, chunk.seeds, settings)) for chunk in chunks])
    assert np.array_equal(features, calm)
    assert measuring.result(measurement).measured.fid == estimate_fid(features, of, reference, 10)


def _wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "what does not answer is killed, too"
        time.sleep(0.1)


def _work(opened: tuple[Pool, ...], chunks, measurement: Measurement, failed: list[BaseException]) -> None:
    sampling, fids = opened
    try:
        make_all(sampling, [(chunk,) for chunk in chunks])
        make_all(fids, [(measurement,)])
        ray.get(sampling.dispatchers.status.remote(0), timeout=60)
    except BaseException as error:
        failed.append(error)
