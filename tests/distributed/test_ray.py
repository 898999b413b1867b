"""Training, evaluation and a sweep on Ray, with faults. One Ray for all of it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import edm_ray as edm
from edm_ray.cli import main
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.diffusion.samplers import sampler
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.reference import open_reference
from edm_ray.models import open_model
from edm_ray.storage import lease
from edm_ray.storage.lease import Holder
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store, claim_run, model_uri
from tests.formats import without_format
from tests.processes import ray_processes
from tests.training.together import run_together

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def run_dir(root, digits_dir):
    """A tiny run of two DDP workers, by the command."""
    uri = root / "run"
    arguments = ["train", "--data", str(digits_dir / "train"), "--out", str(uri), "--preset", "tiny", "--workers", "2"]
    assert main([*arguments, "--set", "denoiser.network.dropout=0"]) == 0
    return uri


@pytest.fixture(scope="module")
def bench_dirs(run_dir, digits_reference):
    return run_dir / "model", Path(digits_reference)


def _weights(uri: Path) -> torch.Tensor:
    import safetensors.torch

    state = safetensors.torch.load(open_model(str(uri)).weights)
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


def test_two_ddp_workers_give_the_parameters_of_one_process(root, run_dir, digits_dir):
    """Same images, sigmas and noise; parameters agree to float32 rounding through ten Adam steps."""
    uri = root / "plain"
    arguments = ["train", "--data", str(digits_dir / "train"), "--out", str(uri), "--preset", "tiny", "--no-ray"]
    assert main([*arguments, "--set", "denoiser.network.dropout=0"]) == 0
    one, two = _weights(uri / "model"), _weights(run_dir / "model")
    assert float((one - two).norm() / one.norm()) < 1e-4
    losses = [[row["loss"] for row in read_metrics(str(path))] for path in (uri, run_dir)]
    assert np.allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_one_worker_of_ray_has_the_bits_of_a_process_without_ray_whatever_threads_either_was_given(root, digits_dir):
    """The engine sets its threads itself: Ray gives its workers one, a plain process would take all cores. (The same of
    a network of one's own, in tests/tasks/test_here_and_on_ray.py, is not slow.)"""
    before, results = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for name, how in (("one-ray", ["--workers", "1"]), ("one-plain", ["--no-ray"])):
            uri = str(root / name)
            data = ["--data", str(digits_dir / "train"), "--out", uri, "--preset", "tiny"]
            assert main(["train", *data, *how, "--set", "total_kimg=0.096"]) == 0
            rows = [(row["loss"], row["loss_by_sigma"], row["grad_norm"]) for row in read_metrics(uri)]
            results.append((open_model(model_uri(uri)).weights, rows))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def _sigkill_a_worker_after_the_first_checkpoint(run_uri: str, killed: list[int]) -> None:
    store = checkpoint_store(run_uri)
    while not store.committed():
        time.sleep(0.05)
    while not killed:
        for pid, _title in ray_processes("RayTrainWorker")[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)


def test_training_resumes_from_its_checkpoint_when_a_worker_is_killed(root, digits_dir):
    """SIGKILL of one worker: Ray Train restarts the group, which equals a calm run, of two processes without Ray, bit
    for bit."""
    dataset = open_dataset(str(digits_dir / "train"))
    overrides = ["total_kimg=2.4", "tick_kimg=0.24", "checkpoint_kimg=0.24"]
    killed: list[int] = []
    uri = str(root / "struck")
    threading.Thread(target=_sigkill_a_worker_after_the_first_checkpoint, args=(uri, killed), daemon=True).start()
    arguments = ["train", "--data", dataset.uri, "--out", uri, "--preset", "tiny", "--workers", "2", "--set"]
    assert main([*arguments, *overrides]) == 0
    assert run_together(2, dataset.uri, str(root / "calm"), overrides) == [0, 0]
    assert not (root / "struck" / "log").exists(), "what Ray Train keeps of itself goes with the command"
    assert killed, "no worker was found to kill"
    assert open_model(model_uri(str(root / "struck"))).weights == open_model(model_uri(str(root / "calm"))).weights
    clocks = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}
    struck, calm = (
        [{key: value for key, value in row.items() if key not in clocks} for row in read_metrics(str(root / name))]
        for name in ("struck", "calm")
    )
    assert struck == calm


@pytest.mark.fault
def test_workers_whose_command_has_lost_the_folder_write_no_more_and_are_not_started_again(root, digits_dir, capsys):
    """Another writer takes the lease over, as it may when this command gave no sign of life for a while."""
    uri = str(root / "lost")

    def take_over() -> None:
        while not checkpoint_store(uri).committed():
            time.sleep(0.05)
        holder = dataclasses.replace(Holder.this("sweep"), host="node-7", place="elsewhere")
        content = json.dumps({"format": lease.FORMAT, **dataclasses.asdict(holder)})
        Path(uri, lease.FOLDER, "000002.json").write_text(content)

    other = threading.Thread(target=take_over, daemon=True)
    other.start()
    arguments = ["train", "--data", str(digits_dir / "train"), "--out", uri, "--preset", "tiny", "--workers", "1"]
    assert main([*arguments, "--set", "total_kimg=4800", "tick_kimg=0.24", "checkpoint_kimg=0.24"]) == 2
    other.join()
    said = capsys.readouterr().err
    assert "`edm-ray sweep` on node-7" in said and "writes no more" in said and "Traceback" not in said
    time.sleep(1)
    there = sorted(path.stat().st_mtime_ns for path in Path(uri).rglob("*") if path.is_file())
    time.sleep(2)
    assert there == sorted(path.stat().st_mtime_ns for path in Path(uri).rglob("*") if path.is_file())


def test_evaluation_does_not_depend_on_the_number_of_actors_and_reuses_its_chunks(root, bench_dirs):
    model, reference = bench_dirs
    results = []
    for workers, out in ((1, "e1"), (2, "e2"), (2, "e2"), (0, "e0")):
        arguments = ["evaluate", "--model", str(model), "--reference", str(reference), "--num", "250"]
        arguments += ["--set", "num_steps=4", "s_churn=1", "--workers", str(workers), "--out", str(root / out)]
        assert main(arguments) == 0
        results.append(json.loads((root / out / "evaluation.json").read_text())["samples"])
    assert results[0] == results[1] == results[2] == results[3] and results[0]["n"] == 250


def _recipe(bench_dirs, store):
    from edm_ray.generation.features import GenerateFeatures

    _, extractor = open_reference(str(bench_dirs[1]))
    return GenerateFeatures(model=open_model(str(bench_dirs[0])), extractors=(extractor,), store=str(store))


def _chunks(bench_dirs, settings, count, size):
    from edm_ray.evaluation.chunks import chunks_of
    from edm_ray.generation.evaluate import EvaluationSpec

    reference, _ = open_reference(str(bench_dirs[1]))
    spec = EvaluationSpec(model=open_model(str(bench_dirs[0])), extractors=(), store="")
    effective = settings.effective(spec.model.denoiser())
    return chunks_of(spec.generator(reference.moments.extractor, "cpu"), effective, "search", count, size)


def test_a_chunk_whose_actor_is_killed_is_computed_by_another(root, bench_dirs):
    import ray

    from edm_ray.distributed.executor import Ray
    from edm_ray.distributed.pool import start_pools
    from edm_ray.evaluation.chunks import read_chunk
    from edm_ray.execution.executor import make_all
    from edm_ray.execution.local import Local

    recipe = _recipe(bench_dirs, root / "kill")
    chunks = _chunks(bench_dirs, sampler(num_steps=10), 6, 100)
    [pool] = start_pools(Ray(workers=2), [recipe])
    pids = pool.worker_pids()
    waiting = [pool.ensure(chunk) for chunk in [*chunks, chunks[0]]]
    os.kill(pids[0], signal.SIGKILL)
    assert sum(ray.get(waiting)) == 6  # asked for seven times, made six
    status = pool.status()
    assert status["actors lost"] == 1 and status["made"] == 6
    calm = _recipe(bench_dirs, root / "calm-chunks")
    with Local().open(calm) as (here,):
        make_all(here, [(chunk,) for chunk in chunks])
    for chunk in chunks:
        assert np.array_equal(read_chunk(recipe.store, chunk), read_chunk(calm.store, chunk))
    pool.stop()


def test_a_damaged_chunk_or_one_of_other_settings_never_enters_a_sum(root, bench_dirs):
    import shutil

    from edm_ray.evaluation.chunks import read_chunk, write_chunk
    from edm_ray.storage.artifacts import key_of, path_of

    store = str(root / "bad")
    one, two = (_chunks(bench_dirs, sampler(num_steps=n), 1, 4)[0] for n in (4, 5))
    assert key_of(one) != key_of(two)
    write_chunk(store, one, np.arange(8, dtype=np.int32).reshape(4, 2))
    assert read_chunk(store, one).tolist() == np.arange(8).reshape(4, 2).tolist()
    target = Path(path_of(store, two))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path_of(store, one), target)
    with pytest.raises(IntegrityError, match="other settings"):
        read_chunk(store, two)
    path = Path(path_of(store, one))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match="whole chunk"):
        read_chunk(store, one)


SWEEP = {
    "chunk_size": 50,
    "initial_chunks": 1,
    "max_chunks": 2,
    "num_line": 2,
    "num_global": 1,
    "num_model": 2,
    "budget_images": 1200,
    "confirm_chunks": 2,
}


def _sweep(root, bench_dirs, out, on) -> edm.Sweep:
    model, reference = map(str, bench_dirs)
    plan = edm.sweep_plan(**SWEEP)
    few = {"concurrent": 2} if isinstance(on, edm.Ray) else {}  # each trial in flight is a process
    return edm.sweep(model, reference, "tune_spaces/digits.yaml", str(root / out), plan=plan, grid=10, on=on, **few)


@pytest.fixture(scope="module")
def swept(root, bench_dirs) -> edm.Sweep:
    """On two workers of Ray."""
    return _sweep(root, bench_dirs, "sweep", edm.Ray(workers=2))


def _result(sweep: edm.Sweep) -> dict:
    """What sweep.json says, without what a clock measured."""
    found = json.loads((Path(sweep.out) / "sweep.json").read_text())
    for trial in found["trials"]:
        trial.pop("seconds")
    return found


def _stored(sweep: edm.Sweep) -> dict[Path, bytes]:
    store = Path(sweep.out) / "chunks"
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("*.safetensors")}


def test_every_evaluation_is_a_tune_trial_and_a_repeated_sweep_generates_nothing(root, bench_dirs, swept, capsys):
    first, out = _result(swept), Path(swept.out)
    chunks = {path: path.stat().st_mtime_ns for path in (out / "chunks").rglob("*.safetensors")}
    shown = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert len(shown) == len(first["trials"]) >= 6
    assert {round(row["fid"], 9) for row in shown} == {round(t["estimate"]["fid"], 9) for t in first["trials"]}
    assert all({"s_churn", "s_tmin", "s_tmax", "s_noise"} <= row["config"].keys() for row in shown)
    for name in ("report.html", "best-sampler.yaml"):
        assert (out / name).stat().st_size > 500
    written = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert written <= {".html", ".json", ".jsonl", ".png", ".safetensors", ".yaml"}, "nothing that is pickled"
    assert without_format(out) == []
    second = _result(_sweep(root, bench_dirs, "sweep", edm.Ray(workers=2)))
    assert {path: path.stat().st_mtime_ns for path in (out / "chunks").rglob("*.safetensors")} == chunks
    assert second["best"] == first["best"] and second["decisions"] == first["decisions"]
    best = ["generate", "--model", str(bench_dirs[0]), "--sampler", str(out / "best-sampler.yaml"), "--num", "5"]
    assert main([*best, "--out", str(root / "best.png")]) == 0


def test_a_sweep_here_decides_as_one_on_ray_and_makes_the_same_chunks(root, bench_dirs, swept):
    here = _sweep(root, bench_dirs, "sweep-here", edm.Local())
    assert _result(here) == _result(swept)
    assert here.best == swept.best and here.table == swept.table
    assert here.against_deterministic == swept.against_deterministic
    assert _stored(here) == _stored(swept)
    names = ("best-sampler.yaml", "samples-1.png", "samples-2.png")
    assert all((Path(here.out) / name).read_bytes() == (Path(swept.out) / name).read_bytes() for name in names)


def test_more_workers_than_cpus_are_refused_at_once(digits_dir, root, bench_dirs, capsys):
    started = time.monotonic()
    data, out = str(digits_dir / "train"), str(root / "many")
    assert main(["train", "--data", data, "--out", out, "--preset", "tiny", "--workers", "9"]) == 2
    assert "--workers 9: this machine has 4 CPUs" in capsys.readouterr().err
    evaluate = ["evaluate", "--model", str(bench_dirs[0]), "--reference", str(bench_dirs[1]), "--num", "100"]
    assert main([*evaluate, "--out", str(root / "e9"), "--workers", "9"]) == 2
    assert "--workers 9: this machine has 4 CPUs" in capsys.readouterr().err
    assert time.monotonic() - started < 10


def test_estimates_travel_as_json(bench_dirs):
    estimate = FidEstimate(fid=1.5, debiased=1.0, se=0.1, n=3, influence=(1.0, -1.0), reference="r", extractor="e")
    assert FidEstimate.from_dict(json.loads(json.dumps(estimate.to_dict()))) == estimate


def test_a_plain_engine_needs_no_ray(digits_dir, tmp_path):
    dataset = open_dataset(str(digits_dir / "train"))
    config = tiny(dataset.shape)
    claim_run(str(tmp_path), config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    assert open_model(model_uri(str(tmp_path))).about["images_seen"] == 240
    with pytest.raises(InputError):
        open_model(str(tmp_path / "nothing"))
