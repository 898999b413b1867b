"""A sweep whose driver, samplers or settings fail."""

from __future__ import annotations

import asyncio
import html
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray.exceptions import ActorDiedError

from edm_ray.cli import main
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.distributed.cluster.preflight import WorkerRequest
from edm_ray.distributed.dispatcher import MAX_DEATHS, Dispatcher, ItemFailed, PoolSpec
from edm_ray.distributed.sweep import DriverSearcher, concurrency
from edm_ray.distributed.watched import Job
from edm_ray.evaluation.chunks import Generator, chunks_of
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.features import GenerateFeatures
from edm_ray.generation.generate import MICRO_BATCH
from edm_ray.models import open_model
from edm_ray.search.space import load_space
from edm_ray.storage.artifacts import key_of
from tests.formats import without_format
from tests.search.worlds import SPACE as WORLD
from tests.search.worlds import driver_of

pytestmark = pytest.mark.ray
SPACE = """
name: faults
sampler: {num_steps: 4}
search:
  churn_fraction: {low: 0.1, high: 1.0}
  s_noise: {low: 0.99, high: 1.02}
starts:
  broken: {s_churn: 1.0, s_noise: 1.0e+300}
"""
SIZES = [
    *("--chunk-size", "50", "--initial-chunks", "1", "--max-chunks", "2", "--num-line", "2", "--num-global", "2"),
    *("--num-model", "2", "--confirm-chunks", "2", "--grid", "10", "--budget-images", "1000"),
]
FEW = [
    *("--strategy", "random", "--num-global", "2", "--chunk-size", "50", "--max-chunks", "1", "--initial-chunks", "1"),
    *("--confirm-chunks", "1", "--grid", "10", "--concurrent", "2"),  # each trial in flight is a process
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory, digits_dir, digits_reference):
    root, data = tmp_path_factory.mktemp("sweep-faults"), str(digits_dir / "train")
    assert main(["train", "--data", data, "--out", str(root / "run"), "--preset", "tiny", "--no-ray"]) == 0
    return ["--model", str(root / "run" / "model"), "--reference", digits_reference]


@pytest.mark.usefixtures("ray_session")
def test_settings_that_give_no_numbers_or_raise_are_listed_with_their_reasons_and_the_sweep_continues(parts, tmp_path):
    """S_noise of 1e300: pixels are infinite, and would pass for white ones. And a folder lies where a chunk belongs, so
    every worker that writes the chunk raises."""
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text(f"{SPACE}  barred: {{s_churn: 1.0, s_noise: 1.0}}\n")
    model, (reference, _) = open_model(parts[1]), open_reference(parts[3])
    generator = Generator(
        model=model.hash,
        extractor=reference.moments.extractor,
        labels="random",
        micro_batch=MICRO_BATCH,
        device="cpu",
    )
    barred = load_space(str(space)).starts["barred"].effective(model.denoiser())
    key = key_of(chunks_of(generator, barred, "search", 1, 50)[0])
    (out / "chunks" / "chunk" / key[:2] / f"{key}.safetensors").mkdir(parents=True)
    assert main(["sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "1", *FEW]) == 0
    trials = json.loads((out / "sweep.json").read_text())["trials"]
    failed = {trial["evaluation"]["label"]: trial["failure"] for trial in trials if trial["estimate"] is None}
    assert failed.keys() == {"broken", "barred"} and key in failed["barred"] and len(trials) >= 6
    page = (out / "report.html").read_text()
    assert "failed:" in page and "broken" in page and f"failed: {html.escape(failed['barred'])[:40]}" in page
    assert (out / "best-sampler.yaml").exists()


def test_a_chunk_whose_workers_always_die_is_given_up_and_named():
    """What running out of memory looks like to the queue: the process is gone, again and again."""
    generator = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")
    chunk = chunks_of(generator, sampler(), "search", 1, 50)[0]

    async def play() -> None:
        queue = Dispatcher(b"", PoolSpec(ask=WorkerRequest(what="sampling", count=1), device="cpu", slots=1))
        job = Job((chunk,), asyncio.get_running_loop().create_future())
        for death in range(1, MAX_DEATHS + 1):
            assert not job.done.done()
            queue._lost(job, ActorDiedError())
            assert (queue.jobs.qsize() == 1) == (death < MAX_DEATHS)
            if death < MAX_DEATHS:
                assert await queue.jobs.get() is job
        with pytest.raises(ItemFailed, match=f"{MAX_DEATHS} workers died over it"):
            await job.done

    asyncio.run(play())


@pytest.mark.usefixtures("ray_session")
def test_hours_that_confirm_nothing_are_refused_before_any_trial_and_the_speed_is_kept(parts, tmp_path, capsys):
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text(SPACE)
    command = ["sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "1", *FEW]
    assert main([*command, "--budget-gpu-hours", "1e-7"]) == 2
    assert "too little to confirm anything" in capsys.readouterr().err
    assert json.loads((out / "speed.json").read_text())["evaluations_per_worker_hour"] > 1000
    assert not (out / "trials.jsonl").exists() and without_format(out) == []


GUIDED = """
name: guided
sampler: {num_steps: 4}
search:
  guidance: {grid: [1.0, 1.5, 3.0]}
  guidance_min: {grid: [0.0, 0.2]}
"""


def _settings(fields: dict) -> Sampler:
    """As sweep.json has them: infinity is a word there, tuples are lists."""
    kinds = {"inf": math.inf}
    values = {name: kinds.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}
    return sampler(**{name: tuple(each) if isinstance(each, list) else each for name, each in values.items()})


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_over_guidance_finds_a_sampler_that_names_its_guide_and_is_taken_as_it_is(parts, digits_dir, tmp_path):
    """Guided by a second model, to the end: what is guided costs more evaluations, and the pool has room for both."""
    guide = str(tmp_path / "guide")
    small = ["--preset", "tiny", "--no-ray", "--set", "seed=1", "total_kimg=1.2"]
    assert main(["train", "--data", str(digits_dir / "train"), "--out", guide, *small]) == 0
    guide = f"{guide}/model"
    plain, guided = open_model(parts[1]), open_model(parts[1], guide)
    _, spec = open_reference(parts[3])
    room = [GenerateFeatures(model=model, extractors=(spec,), store="").needs.memory for model in (plain, guided)]
    assert room[1] - room[0] == 2 * len(open_model(guide).weights)
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text(GUIDED)
    command = ["sweep", *parts, "--guide", guide, "--space", str(space), "--out", str(out), "--workers", "1"]
    sizes = ["--strategy", "grid", "--chunk-size", "50", "--max-chunks", "1", "--initial-chunks", "1"]
    assert main([*command, *sizes, "--confirm-chunks", "1", "--grid", "10", "--concurrent", "2"]) == 0
    asked = [trial["evaluation"] for trial in json.loads((out / "sweep.json").read_text())["trials"]]
    nfe = [_settings(each["settings"]).nfe for each in asked if each["seeds"] == "search"]
    assert len(nfe) == 5, "guidance of 1 is one sampler, whatever its interval"
    assert nfe.count(7) == 1 and all(7 < each <= 14 for each in nfe if each != 7)
    best = yaml.safe_load((out / "best-sampler.yaml").read_text())
    assert open_model(guide).hash in json.dumps(best)
    images = ["generate", "--model", parts[1], "--guide", guide, "--out", str(tmp_path / "images.png"), "--num", "4"]
    assert main([*images, "--sampler", str(out / "best-sampler.yaml")]) == 0


def test_a_trial_imports_nothing_heavy():
    """Each trial in flight is a process: with torch it would cost seconds of CPU to do nothing but wait."""
    code = "import sys, edm_ray.distributed.trial; print(sorted({'torch', 'scipy', 'pydantic'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def _searcher(space: str = WORLD) -> DriverSearcher:
    return DriverSearcher(driver_of(space), lambda answer: None)


def test_no_more_trials_are_in_flight_than_the_pool_keeps_busy():
    assert [concurrency(workers) for workers in (1, 4, 16, 1000)] == [4, 8, 32, 64]
    searcher = _searcher()
    searcher.set_max_concurrency(2)
    assert [searcher.suggest(str(i)) is None for i in range(3)] == [False, False, True]


def test_a_trial_that_is_lost_for_good_is_a_failure_and_the_sweep_continues():
    searcher = _searcher()
    assert searcher.suggest("a") and searcher.suggest("b")
    lost, other = searcher.running["a"], searcher.running["b"]
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("b", {"fid": math.nan, "failure": "no"})
    told = {answer.evaluation.id: answer.failure for answer in searcher.driver.trials}
    assert "lost again and again" in told[lost.id] and told[other.id] == "no"


@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_a_sweep_killed_after_a_third_of_its_trials_decides_the_same_and_makes_no_chunk_again(parts, tmp_path):
    """SIGKILL of the driver; the same command goes on, and ends as a sweep that was left alone."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("num_steps: 4", "num_steps: 8"))
    environment = {**os.environ, "EDM_RAY_LOCAL_CPUS": "3"}

    def command(out: Path) -> list[str]:
        edm_ray = str(Path(sys.executable).with_name("edm-ray"))
        return [edm_ray, "sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "2", *SIZES]

    subprocess.run(command(tmp_path / "calm"), env=environment, check=True, timeout=800)
    calm = json.loads((tmp_path / "calm" / "sweep.json").read_text())
    struck = subprocess.Popen(command(tmp_path / "struck"), env=environment)
    store = tmp_path / "struck" / "chunks"
    deadline = time.monotonic() + 600
    while len(list((store / "measurement").rglob("*.safetensors"))) < len(calm["trials"]) // 3:
        assert struck.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    struck.kill()
    struck.wait()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}
    assert before and not (tmp_path / "struck" / "sweep.json").exists()
    subprocess.run(command(tmp_path / "struck"), env=environment, check=True, timeout=800)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there was not made again"
    again = json.loads((tmp_path / "struck" / "sweep.json").read_text())
    for result in (calm, again):
        for trial in result["trials"]:
            trial.pop("seconds")
    assert again["trials"] == calm["trials"] and again["decisions"] == calm["decisions"]
    assert again["best"] == calm["best"] and again["confirmed"] == calm["confirmed"]
