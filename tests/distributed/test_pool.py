"""What the pool promises, also while its parts are killed (`make test-faults` for most of that)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
import safetensors.torch
import torch

from edm_ray.cli import main
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.distributed.executor import Ray
from edm_ray.distributed.pool import ask_for, check, start_pools
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.chunks import Generator, chunks_of, gather, read_chunk, read_rows
from edm_ray.evaluation.device import kind_of
from edm_ray.evaluation.extractors.digits import save_digits_classifier
from edm_ray.evaluation.measure import estimate_fid
from edm_ray.evaluation.reference import ExtractorSpec, Reference, open_reference
from edm_ray.execution.executor import make_all
from edm_ray.execution.local import Local
from edm_ray.generation.evaluate import EvaluationSpec, sample_images
from edm_ray.generation.features import GenerateFeatures
from edm_ray.generation.generate import generate
from edm_ray.models import open_model
from edm_ray.storage.artifacts import path_of
from tests.processes import ray_processes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
STEPS = 6


@pytest.fixture(scope="module")
def parts(tmp_path_factory, digits_dir, digits_reference):
    """A model directory and a reference directory, made without Ray."""
    root, data = tmp_path_factory.mktemp("pool"), str(digits_dir / "train")
    assert main(["train", "--data", data, "--out", str(root / "run"), "--preset", "tiny", "--no-ray"]) == 0
    return root / "run" / "model", Path(digits_reference)


@dataclass(frozen=True)
class Bench:
    """A recipe, who follows it, and what its features are measured against."""

    recipe: GenerateFeatures
    on: Ray
    reference: Reference

    @property
    def store(self) -> str:
        return self.recipe.store

    def generator(self, extractor: str = "") -> Generator:
        spec = EvaluationSpec(model=self.recipe.model, extractors=self.recipe.extractors, store=self.store)
        return spec.generator(extractor or self.reference.moments.extractor, "cpu")


def _bench(parts, store, workers=2, least=None, **more) -> Bench:
    reference, extractor = open_reference(str(parts[1]))
    fields = {"model": open_model(str(parts[0])), "extractors": (extractor,), "store": str(store), **more}
    return Bench(GenerateFeatures(**fields), Ray(workers=workers, least=least), reference)


def _settings(bench: Bench, churn: float = 1.0, steps: int = STEPS) -> Sampler:
    return sampler(num_steps=steps, s_churn=churn).effective(bench.recipe.model.denoiser())


def _calm(bench: Bench, settings: Sampler, chunks, extractor: ExtractorSpec | None = None) -> np.ndarray:
    """The features of these chunks without Ray, pool or store."""
    denoiser, taken = bench.recipe.model.denoiser(), (extractor or bench.recipe.extractors[0]).load()
    return np.concatenate([taken.extract(generate(denoiser, chunk.seeds, settings)) for chunk in chunks])


@pytest.fixture
def pool_of():
    """Start pools; all of them end with the test, also when it fails."""
    pools = []

    def start(bench: Bench, **more):
        pools.extend(start_pools(bench.on, [bench.recipe], **more))
        return pools[-1]

    yield start
    for pool in pools:
        pool.stop()


@pytest.fixture(scope="module")
def other_reference(parts, digits_dir, tmp_path_factory):
    """A reference of another extractor: the same network with other weights."""
    root = tmp_path_factory.mktemp("other")
    state = safetensors.torch.load((parts[1] / "extractor-weights").read_bytes())
    save_digits_classifier({**state, "hidden.bias": state["hidden.bias"] + 0.1}, root / "weights")
    data = ["--data", str(digits_dir / "train"), "--extractor", "digits", "--weights", str(root / "weights")]
    assert main(["reference", *data, "--out", str(root / "reference")]) == 0
    return root / "reference"


@pytest.fixture(scope="class")
def shared(parts, other_reference, tmp_path_factory):
    """One pool of two workers with two extractors, for the tests that leave it as it was."""
    extractors = tuple(open_reference(str(where))[1] for where in (parts[1], other_reference))
    bench = _bench(parts, tmp_path_factory.mktemp("shared"), extractors=extractors)
    [pool] = start_pools(bench.on, [bench.recipe])
    yield bench, pool
    pool.stop()


class TestOfOnePool:
    def test_chunks_asked_for_at_once_and_again_are_made_once(self, shared):
        bench, pool = shared
        settings = _settings(bench)
        chunks = chunks_of(bench.generator(), settings, "search", 3, 50)
        asked = [*chunks, *reversed(chunks), chunks[1]]
        assert sum(ray.get([pool.ensure(chunk) for chunk in asked])) == 3
        assert sum(ray.get([pool.ensure(chunk) for chunk in asked])) == 0
        features, _ = gather(bench.store, chunks)
        assert np.array_equal(features, _calm(bench, settings, chunks))

    def test_a_truncated_chunk_is_made_again_with_the_same_bits(self, shared):
        bench, pool = shared
        chunk = chunks_of(bench.generator(), _settings(bench, 2.0), "search", 1, 50)[0]
        assert ray.get(pool.ensure(chunk))
        before, path = read_chunk(bench.store, chunk), Path(path_of(bench.store, chunk))
        path.write_bytes(path.read_bytes()[:-9])
        assert ray.get(pool.ensure(chunk)), "what is damaged is not taken for there"
        assert np.array_equal(read_chunk(bench.store, chunk), before)

    def test_the_kind_of_device_that_made_a_chunk_is_kept_with_it(self, shared):
        bench, pool = shared
        chunk = chunks_of(bench.generator(), _settings(bench), "search", 1, 50)[0]
        ray.get(pool.ensure(chunk))
        assert [rows.made_on for rows in read_rows(bench.store, [chunk])] == [kind_of("cpu")]

    def test_a_chunk_of_another_extractor_is_refused_by_name_and_the_pool_continues(self, shared):
        bench, pool = shared
        foreign, ours = (
            [(chunk,) for chunk in chunks_of(bench.generator(extractor), _settings(bench), "search", 1, 50)]
            for extractor in ("0" * 64, "")
        )
        with pytest.raises(InputError, match="asks for another extractor"):
            make_all(pool, foreign)
        make_all(pool, ours)

    def test_several_extractors_see_the_same_images_which_are_sampled_once(self, shared, other_reference):
        bench, pool = shared
        settings, ensure = _settings(bench, 3.0), pool.ensure
        chunks = chunks_of(bench.generator(), settings, "search", 2, 50)
        others = [chunk.of_extractor(open_reference(str(other_reference))[0].moments.extractor) for chunk in chunks]
        assert ray.get([ensure(*both) for both in zip(chunks, others, strict=True)]) == [True, True]
        assert ray.get([ensure(chunk) for chunk in (*chunks, *others)]) == [False] * 4
        for made, spec in zip((chunks, others), bench.recipe.extractors, strict=True):
            features, _ = gather(bench.store, made)
            assert np.array_equal(features, _calm(bench, settings, made, spec))
        Path(path_of(bench.store, others[0])).unlink()
        assert ray.get(ensure(chunks[0], others[0])), "what is missing of one extractor is made again"


def test_two_chunks_in_hand_of_one_worker_have_the_same_bits(parts, pool_of, tmp_path):
    """As on a GPU: one is sampled while the features of the other are taken."""
    bench = _bench(parts, tmp_path, 1)
    pool = pool_of(bench, in_hand=2)
    chunks = chunks_of(bench.generator(), _settings(bench), "search", 6, 50)
    assert sum(ray.get([pool.ensure(chunk) for chunk in chunks])) == 6
    features, _ = gather(bench.store, chunks)
    assert np.array_equal(features, _calm(bench, _settings(bench), chunks))


def test_a_larger_evaluation_reuses_the_chunks_of_a_smaller_one(parts, other_reference, tmp_path):
    base = ["evaluate", "--model", str(parts[0]), "--set", "num_steps=3", "--store", str(tmp_path / "store")]

    def evaluate(out: str, num: int, *references: Path, workers: int = 0) -> dict:
        where = ["--reference", *map(str, references), "--out", str(tmp_path / out), "--num", str(num)]
        assert main([*base, *where, "--workers", str(workers)]) == 0
        return json.loads((tmp_path / out / "evaluation.json").read_text())

    def stored() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "chunk").rglob("*.safetensors")}

    evaluate("few", 150, parts[1])
    before = stored()
    assert len(before) == 2
    both = evaluate("more", 230, parts[1], other_reference, workers=1)
    assert before.items() <= stored().items(), "what was there was not made again"
    assert len(stored()) == 6 and both["samples"]["n"] == 230 and both["made_on"] == [kind_of("cpu")]
    alone = evaluate("other", 230, other_reference)
    assert alone["samples"] == both["further_references"][0]["samples"] != both["samples"]
    assert len(stored()) == 6 and not (tmp_path / "more" / "chunks").exists()


def test_what_this_machine_cannot_hold_is_refused_before_ray_starts(parts, digits_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    command = ["evaluate", "--model", str(parts[0]), "--reference", str(parts[1]), "--num", "100"]
    for arguments, says in ((["--workers", "9"], "this machine has 4 CPUs"), (["--device", "cuda"], "0; add a node")):
        assert main([*command, "--out", str(tmp_path), *arguments]) == 2
        assert says in capsys.readouterr().err
    weights = ["--extractor", "digits", "--weights", str(parts[1] / "extractor-weights"), "--workers", "9"]
    assert main(["reference", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "r"), *weights]) == 2
    assert "--workers 9: this machine has 4 CPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_images_by_many_have_the_bytes_of_one_process(parts, tmp_path):
    """Also from seeds in the middle of chunks; what lay between is gone at the end."""
    base = ["generate", "--model", str(parts[0]), "--num", "130", "--seed", "37", "--set", "num_steps=3", "--out"]
    assert main([*base, str(tmp_path / "one" / "x.zip")]) == 0
    assert main([*base, str(tmp_path / "two" / "x.zip"), "--workers", "2"]) == 0
    assert (tmp_path / "one" / "x.zip").read_bytes() == (tmp_path / "two" / "x.zip").read_bytes()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["x.zip"]


@pytest.mark.parametrize("executor", [Local(), Ray(workers=1)], ids=["here", "on Ray"])
def test_images_resume_from_the_chunks_that_are_there(parts, tmp_path, executor):
    settings, made = sampler(num_steps=3), []
    spec = EvaluationSpec(model=open_model(str(parts[0])), extractors=(), store=str(tmp_path / "store"))
    stream = sample_images(spec, settings, range(200), executor, on_chunk=lambda done, total: made.append(done))
    next(stream)
    stream.close()  # as when the command is interrupted: the pool ends, the chunks stay
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    assert 1 <= len(before) <= 4
    rows = list(sample_images(spec, settings, range(200), Local()))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    seeds, images = (np.concatenate(pieces) for pieces in zip(*rows, strict=True))
    assert seeds.tolist() == list(range(200))
    assert np.array_equal(images, generate(spec.model.denoiser(), torch.arange(200), settings).numpy())


@pytest.mark.fault
def test_a_killed_dispatcher_starts_again_and_calls_under_way_end_well(parts, pool_of, tmp_path):
    bench = _bench(parts, tmp_path)
    pool, settings = pool_of(bench), _settings(bench, steps=12)
    chunks = chunks_of(bench.generator(), settings, "search", 6, 50)
    waiting = [pool.ensure(chunk) for chunk in chunks]
    ray.wait(waiting, num_returns=1)
    ray.kill(pool.dispatchers, no_restart=False)
    ray.get(waiting, timeout=120)
    features, _ = gather(bench.store, chunks)
    assert np.array_equal(features, _calm(bench, settings, chunks))


def test_extractor_weights_of_another_hash_are_refused_and_nothing_is_sampled(parts, pool_of, tmp_path):
    bench = _bench(parts, tmp_path, 1)
    wrong = ExtractorSpec(name="digits", weights=bench.recipe.extractors[0].weights, sha256="0" * 64)
    broken = _bench(parts, tmp_path, 1, extractors=(wrong,))
    chunk = chunks_of(bench.generator(), _settings(bench), "search", 1, 50)[0]
    with pytest.raises(IntegrityError, match="not the weights that were asked for"):
        make_all(pool_of(broken), [(chunk,)])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_model_weights_of_another_hash_are_refused(parts, tmp_path):
    shutil.copytree(parts[0], tmp_path / "model")
    path = next((tmp_path / "model").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(IntegrityError, match="sha256 differs from the manifest"):
        open_model(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "9"], "this machine has 4 CPUs"),
        (["--workers", "1", "--device", "cuda"], "GPU"),
        (["--workers", "5:9"], "this machine has 4 CPUs"),
    ],
)
def test_a_pool_that_can_have_no_resources_is_refused_within_ten_seconds(parts, tmp_path, capsys, arguments, message):
    command = ["evaluate", "--model", str(parts[0]), "--reference", str(parts[1]), "--num", "100"]
    started = time.monotonic()
    assert main([*command, "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "--workers" in error and time.monotonic() - started < 10


def test_resources_that_others_hold_are_waited_for_a_stated_time_and_then_named(parts, tmp_path):
    from edm_ray.distributed.cluster.preflight import preflight

    bench = _bench(parts, tmp_path)

    @ray.remote(num_cpus=4)
    class Holder:
        def ready(self):
            return True

    holder = Holder.remote()
    ray.get(holder.ready.remote())
    try:
        with pytest.raises(InputError, match="in use by others"):
            preflight(ask_for(bench.on, bench.recipe), patience=1.0)
    finally:
        ray.kill(holder)


@pytest.mark.fault
def test_a_pool_grows_when_room_comes(parts, pool_of, tmp_path):
    """Room for one of three samplers; when the others' CPUs are let go, there are three."""

    @ray.remote(num_cpus=3)
    class Holder:
        def ready(self):
            return True

    holder = Holder.remote()
    ray.get(holder.ready.remote())
    bench = _bench(parts, tmp_path, 3, least=1)
    check(bench.on, [bench.recipe])
    pool = pool_of(bench)
    chunks = chunks_of(bench.generator(), _settings(bench), "search", 2, 50)
    assert sum(ray.get([pool.ensure(chunk) for chunk in chunks])) == 2
    assert pool.status()["alive"] == 1
    ray.kill(holder)
    deadline = time.monotonic() + 60
    while pool.status()["alive"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_reference_by_two_actors_one_of_them_killed_has_the_bits_of_one_made_here(parts, digits_dir, tmp_path):
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for pid, _title in ray_processes("Worker"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill_one)
    thread.start()
    command = ["reference", "--data", str(digits_dir / "train"), "--extractor", "digits", "--workers", "2"]
    assert main([*command, "--out", str(tmp_path / "reference")]) == 0
    thread.join()
    assert killed
    here, there = (open_reference(str(where))[0].moments for where in (parts[1], tmp_path / "reference"))
    assert here.hash == there.hash


@pytest.mark.fault
def test_twenty_evaluations_with_samplers_killed_at_random_have_the_fids_of_calm_ones(parts, pool_of, tmp_path):
    """Every four chunks a sampler is killed, and the queue twice; each FID has the bits of one without Ray."""
    bench = _bench(parts, tmp_path)
    pool = pool_of(bench)
    settings = [_settings(bench, churn, 18) for churn in np.linspace(0, 7, 20)]
    sets = [chunks_of(bench.generator(), each, "search", 4, 50) for each in settings]
    waiting = {pool.ensure(chunk): chunk for chunks in sets for chunk in chunks}
    over, kills, chance = threading.Event(), [], random.Random(0)

    def strike() -> None:
        """By what was made, not by the clock: on a busy machine a second is no time for a chunk."""
        while not over.wait(chance.uniform(0.01, 0.3)):
            samplers = ray_processes("Worker.make")
            if samplers and len(list(tmp_path.rglob("*.safetensors"))) >= 4 * len(kills):
                pid = chance.choice(samplers)[0]
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)
            if len(kills) in (5, 12):
                ray.kill(pool.dispatchers, no_restart=False)
                kills.append(0)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        ray.get(list(waiting), timeout=500)
    finally:
        over.set()
        thread.join()
    assert len(kills) >= 10, kills
    for each, chunks in zip(settings, sets, strict=True):
        features, seeds = gather(bench.store, chunks)
        calm = estimate_fid(_calm(bench, each, chunks), seeds, bench.reference, 10)
        assert estimate_fid(features, seeds, bench.reference, 10) == calm


@pytest.mark.fault
def test_a_killed_driver_loses_no_chunk_and_the_same_command_ends_the_same(parts, tmp_path):
    """SIGKILL of `edm-ray evaluate` in mid-run, on a Ray of its own; run again, what was there is not made again."""
    command = [
        str(Path(sys.executable).with_name("edm-ray")),
        "evaluate",
        "--model",
        str(parts[0]),
        "--reference",
        str(parts[1]),
    ]
    command += ["--num", "2000", "--set", "num_steps=18", "--workers", "2"]
    environment = {**os.environ, "EDM_RAY_LOCAL_CPUS": "2"}
    struck = subprocess.Popen([*command, "--out", str(tmp_path / "struck")], env=environment, start_new_session=True)
    store = tmp_path / "struck" / "chunks" / "chunk"
    deadline = time.monotonic() + 120
    while len(list(store.rglob("*.safetensors"))) < 3:
        assert struck.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(struck.pid, signal.SIGKILL)
    struck.wait()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}
    assert 3 <= len(before) < 20
    for out in ("struck", "calm"):
        subprocess.run([*command, "--out", str(tmp_path / out)], env=environment, check=True, timeout=300)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    struck_result, calm_result = (
        json.loads((tmp_path / out / "evaluation.json").read_text())["samples"] for out in ("struck", "calm")
    )
    assert struck_result == calm_result
