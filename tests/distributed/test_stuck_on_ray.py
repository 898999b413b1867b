"""SIGSTOP of the processes of a pool and of a training: named, replaced, and the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectStoreFullError

from edm_ray.cli import main
from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed import pool as pools
from edm_ray.distributed.executor import Ray
from edm_ray.distributed.heart import BEAT_S
from edm_ray.distributed.patience import SILENT
from edm_ray.distributed.pool import start_pools
from edm_ray.errors import InputError
from edm_ray.evaluation.chunks import chunks_of, gather
from edm_ray.evaluation.measure import Plan, estimate_fid
from edm_ray.evaluation.reference import open_reference
from edm_ray.execution.executor import make_all
from edm_ray.generation.evaluate import EvaluationSpec, fid_meter
from edm_ray.generation.features import GenerateFeatures
from edm_ray.generation.generate import generate
from edm_ray.models import open_model
from tests.distributed.test_training_kills import _command, _controller_of, _result, _start, _wait_for_checkpoint
from tests.distributed.test_training_kills import _workers_of as ranks_of
from tests.processes import ray_processes

pytestmark = pytest.mark.ray
STEPS = 40
"""So that a chunk takes a while."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory, digits_dir, digits_reference):
    root, data = tmp_path_factory.mktemp("stuck"), str(digits_dir / "train")
    assert main(["train", "--data", data, "--out", str(root / "run"), "--preset", "tiny", "--no-ray"]) == 0
    return str(root / "run" / "model"), digits_reference


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv(SILENT, "3")


def _title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def stop_in(title: str, seconds: float = 60) -> int:
    """SIGSTOP of a process of this session while it does what its title says; its number."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for pid, _ in ray_processes(title):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
                if title in _title(pid):
                    return pid
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
    raise TimeoutError(f"nothing does {title}")


@contextlib.contextmanager
def stopped_meanwhile(title: str) -> Iterator[list[int]]:
    """The first process seen at this is stopped; at the end it must be gone."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(stop_in(title)))
    thread.start()
    yield found
    thread.join()
    deadline = time.monotonic() + 20
    while found and Path(f"/proc/{found[0]}").exists():
        assert time.monotonic() < deadline, "what does not answer is killed, too"
        time.sleep(0.1)


def _chunks(parts, count: int, store: Path):
    model, (reference, extractor) = open_model(parts[0]), open_reference(parts[1])
    spec = EvaluationSpec(model=model, extractors=(extractor,), store=str(store))
    settings = sampler(num_steps=STEPS).effective(model.denoiser())
    chunks = chunks_of(spec.generator(reference.moments.extractor, "cpu"), settings, "search", count, 100)
    return spec, settings, chunks, (reference, extractor)


def _calm(spec: EvaluationSpec, settings, chunks) -> np.ndarray:
    denoiser, extractor = spec.model.denoiser(), spec.extractors[0].load()
    return np.concatenate([extractor.extract(generate(denoiser, chunk.seeds, settings)) for chunk in chunks])


@pytest.mark.usefixtures("ray_session")
@pytest.mark.fault
@pytest.mark.parametrize("workers", [2, 1])
def test_a_stopped_sampler_is_replaced_and_its_chunk_has_the_same_bits(parts, tmp_path, caplog, workers):
    spec, settings, chunks, _ = _chunks(parts, 6, tmp_path)
    (pool,) = start_pools(Ray(workers=workers), [GenerateFeatures(**_recipe(spec))])
    try:
        with stopped_meanwhile("Worker.make") as stopped:
            make_all(pool, [(chunk,) for chunk in chunks])
        counts = pool.status()
    finally:
        pool.stop()
    assert np.array_equal(gather(spec.store, chunks)[0], _calm(spec, settings, chunks))
    assert counts["made"] == 6 and counts["stuck"] == 1
    assert f"process {stopped[0]}: has not answered since" in caplog.text and "it is replaced, and chunk" in caplog.text


def _recipe(spec: EvaluationSpec) -> dict:
    return {"model": spec.model, "extractors": spec.extractors, "store": spec.store}


@pytest.mark.fault
@pytest.mark.usefixtures("ray_session")
def test_a_stopped_dispatcher_is_started_again_and_the_work_ends_with_the_same_bits(parts, tmp_path, caplog):
    spec, settings, chunks, _ = _chunks(parts, 6, tmp_path)
    (pool,) = start_pools(Ray(workers=1), [GenerateFeatures(**_recipe(spec))])
    try:
        waiting = [pool.ensure(chunk) for chunk in chunks]
        ray.wait(waiting, num_returns=1, timeout=120)
        with stopped_meanwhile("ray::Dispatchers"):
            ray.get(waiting, timeout=200)
    finally:
        pool.stop()
    assert np.array_equal(gather(spec.store, chunks)[0], _calm(spec, settings, chunks))
    assert "the pool's dispatcher has not answered since" in caplog.text


@pytest.mark.fault
@pytest.mark.usefixtures("ray_session")
def test_a_stopped_judge_is_replaced_and_the_fid_is_the_same(parts, tmp_path, caplog):
    spec, settings, chunks, (reference, _) = _chunks(parts, 2, tmp_path)
    with fid_meter(spec, Plan(metrics=("fid",), reference=reference), Ray(workers=1)) as meter:
        before = meter.fid(settings.to_dict(), "search", 1, 100)
        (judge,) = meter.fids.worker_pids()
        os.kill(judge, signal.SIGSTOP)
        found = meter.fid(settings.to_dict(), "search", 2, 100)
    features, seeds = gather(spec.store, chunks)
    assert found == estimate_fid(features, seeds, reference, 10) and before.n == 100
    assert f"measuring: the worker on {os.uname().nodename}, process {judge}: has not answered since" in caplog.text


@pytest.mark.fault
@pytest.mark.parametrize("victim", ["rank", "controller"])
def test_a_stopped_process_of_a_training_is_named_and_the_run_resumes_with_the_same_bits(
    digits_dir, tmp_path, monkeypatch, victim
):
    monkeypatch.setenv(SILENT, "8")
    log, run = tmp_path / "log", tmp_path / "struck"
    driver = _start(_command(digits_dir, run, 14.4), log)
    _wait_for_checkpoint(run, driver, log)
    pid = max(ranks_of(driver.pid)) if victim == "rank" else _controller_of(driver.pid)
    time.sleep(2 * BEAT_S)  # it has told its last step by then
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    said = f"process {pid}: has not answered since"
    while said not in log.read_text():
        assert driver.poll() is None and time.monotonic() - began < 60, log.read_text()
        time.sleep(0.1)
    assert driver.wait(300) == 0, log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if said in line and "starts again" in line]
    assert line.startswith("rank " if victim == "rank" else "Ray Train's controller on")
    assert victim == "controller" or "; last step" in line
    assert not Path(f"/proc/{pid}").exists(), "it is ended"
    assert _start(_command(digits_dir, tmp_path / "calm", 14.4), log).wait(300) == 0
    assert _result(run) == _result(tmp_path / "calm")


def test_a_full_object_store_is_one_line_that_says_what_to_do(parts, tmp_path, monkeypatch):
    def full(value):
        raise ObjectStoreFullError("Failed to put object 00ff of size 1000000 in object store\nmore")

    monkeypatch.setattr(pools.ray, "put", full)
    with pytest.raises(InputError, match=r"object store on this node is full .*end what others hold there") as caught:
        pools._put(b"weights")
    assert "\n" not in str(caught.value)
