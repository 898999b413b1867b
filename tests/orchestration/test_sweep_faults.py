"""A sweep whose driver, samplers or settings fail."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edm_ray.cli import main

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
    *("--chunk-size", "50", "--initial-chunks", "1", "--max-chunks", "2", "--num-line", "2", "--num-global", "4"),
    *("--num-model", "6", "--confirm-chunks", "2", "--grid", "10"),
]

FEW = [
    *("--strategy", "random", "--num-global", "2", "--chunk-size", "50", "--max-chunks", "1", "--initial-chunks", "1"),
    *("--confirm-chunks", "1", "--grid", "10"),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory, digits_dir):
    root, data = tmp_path_factory.mktemp("sweep-faults"), str(digits_dir / "train")
    assert main(["train", "--data", data, "--out", str(root / "run"), "--preset", "tiny", "--no-ray"]) == 0
    assert main(["reference", "--data", data, "--out", str(root / "reference"), "--extractor", "digits"]) == 0
    return ["--model", str(root / "run" / "model"), "--reference", str(root / "reference")]


@pytest.mark.usefixtures("ray_session")
def test_a_setting_that_gives_no_numbers_is_listed_and_the_sweep_goes_on(parts, tmp_path):
    """S_noise of 1e300: pixels are infinite, and would pass for white ones."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    out = tmp_path / "sweep"
    assert main(["sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "1", *FEW]) == 0
    trials = json.loads((out / "sweep.json").read_text())["trials"]
    failed = {trial["evaluation"]["label"] for trial in trials if trial["estimate"] is None}
    assert failed == {"broken"} and len(trials) >= 5
    page = (out / "report.html").read_text()
    assert "failed:" in page and "broken" in page
    assert (out / "best-sampler.yaml").exists()


def test_a_chunk_whose_samplers_always_die_is_given_up_and_named():
    """What running out of memory looks like to the queue: the process is gone, again and again."""
    from ray.exceptions import ActorDiedError

    from edm_ray.diffusion.samplers import SamplerSettings
    from edm_ray.orchestration.chunks import Generator, chunks_of
    from edm_ray.orchestration.preflight import Ask
    from edm_ray.orchestration.queue import MAX_DEATHS, ChunkFailed, Crew, Job, Queue

    generator = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")
    chunk = chunks_of(generator, SamplerSettings(), "search", 1, 50)[0]

    async def play() -> None:
        queue = Queue((None, None), "store", Crew(ask=Ask(what="sampling", count=1), device="cpu"))
        job = Job(chunk, asyncio.get_running_loop().create_future())
        for death in range(1, MAX_DEATHS + 1):
            assert not job.done.done()
            queue._lost(job, ActorDiedError())
            assert (queue.jobs.qsize() == death) == (death < MAX_DEATHS)
        with pytest.raises(ChunkFailed, match=f"{MAX_DEATHS} samplers died over it"):
            await job.done

    asyncio.run(play())


@pytest.mark.fault
def test_a_sweep_killed_after_a_third_of_its_trials_decides_the_same_and_makes_no_chunk_again(parts, tmp_path):
    """SIGKILL of the driver; the same command goes on, and ends as a sweep that was left alone."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("num_steps: 4", "num_steps: 8"))
    environment = {**os.environ, "EDM_RAY_LOCAL_CPUS": "3"}

    def command(out: Path) -> list[str]:
        edm_ray = str(Path(sys.executable).with_name("edm-ray"))
        return [edm_ray, "sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "2", *SIZES]

    subprocess.run(command(tmp_path / "calm"), env=environment, check=True, timeout=400)
    calm = json.loads((tmp_path / "calm" / "sweep.json").read_text())
    struck = subprocess.Popen(command(tmp_path / "struck"), env=environment)
    store, enough = (
        tmp_path / "struck" / "chunks",
        len(list((tmp_path / "calm" / "chunks").rglob("*.safetensors"))) // 3,
    )
    deadline = time.monotonic() + 300
    while len(list(store.rglob("*.safetensors"))) < enough:
        assert struck.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    struck.kill()
    struck.wait()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}
    assert before and not (tmp_path / "struck" / "sweep.json").exists()
    subprocess.run(command(tmp_path / "struck"), env=environment, check=True, timeout=400)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there was not made again"
    again = json.loads((tmp_path / "struck" / "sweep.json").read_text())
    for result in (calm, again):
        for trial in result["trials"]:
            trial.pop("seconds")
    assert again["trials"] == calm["trials"] and again["decisions"] == calm["decisions"]
    assert again["best"] == calm["best"] and again["confirmed"] == calm["confirmed"]
