"""A sweep whose driver, samplers or settings fail."""

from __future__ import annotations

import asyncio
import collections
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
from ray.tune.search import Searcher

from edm_ray.cli import main
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.distributed.chunks import Generator, chunks_of
from edm_ray.distributed.cluster.preflight import Ask
from edm_ray.distributed.dispatcher import MAX_DEATHS, ChunkFailed, Crew, Job, Queue
from edm_ray.distributed.pool import ask_for
from edm_ray.distributed.sweep import StrategySearcher, can_restore, concurrency
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.generate import MICRO_BATCH
from edm_ray.models import open_model
from edm_ray.search.space import load_space
from tests.search.worlds import SPACE as WORLD
from tests.search.worlds import driver_of, simulate

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
    generator = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")
    chunk = chunks_of(generator, sampler(), "search", 1, 50)[0]

    async def play() -> None:
        queue = Queue(b"", "store", Crew(ask=Ask(what="sampling", count=1), device="cpu"))
        job = Job(chunk, asyncio.get_running_loop().create_future())
        for death in range(1, MAX_DEATHS + 1):
            assert not job.done.done()
            queue._lost(job, ActorDiedError())
            assert (queue.jobs.qsize() == death) == (death < MAX_DEATHS)
        with pytest.raises(ChunkFailed, match=f"{MAX_DEATHS} samplers died over it"):
            await job.done

    asyncio.run(play())


@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_raises_is_listed_with_its_reason_and_the_sweep_goes_on(parts, tmp_path):
    """A folder lies where its chunk belongs, so every sampler that writes the chunk raises."""
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text(SPACE.replace("broken: {s_churn: 1.0, s_noise: 1.0e+300}", "barred: {s_churn: 1.0, s_noise: 1.0}"))
    model, (reference, _) = open_model(parts[1]), open_reference(parts[3])
    generator = Generator(
        model=model.hash,
        extractor=reference.moments.extractor,
        labels="random",
        micro_batch=MICRO_BATCH,
        device="cpu",
    )
    barred = load_space(str(space)).starts["barred"].effective(model.denoiser())
    key = chunks_of(generator, barred, "search", 1, 50)[0].key
    (out / "chunks" / key[:2] / f"{key}.safetensors").mkdir(parents=True)
    assert main(["sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "1", *FEW]) == 0
    trials = json.loads((out / "sweep.json").read_text())["trials"]
    failed = {trial["evaluation"]["label"]: trial["failure"] for trial in trials if trial["estimate"] is None}
    assert list(failed) == ["barred"] and key in failed["barred"]
    page = (out / "report.html").read_text()
    assert f"failed: {html.escape(failed['barred'])[:40]}" in page


@pytest.mark.usefixtures("ray_session")
def test_hours_that_confirm_nothing_are_refused_before_any_trial_and_the_speed_is_kept(parts, tmp_path, capsys):
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text(SPACE)
    command = ["sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "1", *FEW]
    assert main([*command, "--budget-gpu-hours", "1e-7"]) == 2
    assert "too little to confirm anything" in capsys.readouterr().err
    assert json.loads((out / "speed.json").read_text())["evaluations_per_worker_hour"] > 1000
    assert not list(out.glob("log/*"))


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
    room = [ask_for(model, [spec], 1, "cpu").memory for model in (plain, guided)]
    assert room[1] - room[0] == 2 * len(open_model(guide).weights)
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text(GUIDED)
    command = ["sweep", *parts, "--guide", guide, "--space", str(space), "--out", str(out), "--workers", "1"]
    sizes = ["--strategy", "grid", "--chunk-size", "50", "--max-chunks", "1", "--initial-chunks", "1"]
    assert main([*command, *sizes, "--confirm-chunks", "1", "--grid", "10"]) == 0
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


def _searcher(space: str = WORLD) -> StrategySearcher:
    return StrategySearcher(driver_of(space), lambda answer: None)


def _play(searcher: StrategySearcher, most: float = math.inf) -> int:
    """Answer trials as Tune would, ``most`` of them; the last in flight stay unanswered."""
    done = 0
    while done < most and (config := searcher.suggest(f"trial {searcher.asked}")) != Searcher.FINISHED:
        evaluation = searcher.running[f"trial {searcher.asked - 1}"]
        assert config["evaluation"] == evaluation.id
        if done % 7 == 6:
            result = {"fid": math.nan, "failure": "no"}
        else:
            result = {"fid": 1.0, "estimate": json.dumps(simulate(evaluation).to_dict()), "seconds": 1.0}
        searcher.on_trial_complete(f"trial {searcher.asked - 1}", result)
        done += 1
    return done


@pytest.mark.parametrize("answered", [0, 1, 5, 30, 10_000])
def test_a_restored_searcher_asks_only_what_was_not_answered_and_decides_the_same(tmp_path, answered):
    calm = _searcher()
    total = _play(calm)
    struck = _searcher()
    known = _play(struck, answered)
    struck.suggest("in flight")
    struck.save(str(tmp_path / "state"))
    again = _searcher()
    again.restore(str(tmp_path / "state"))
    again.on_trial_complete("in flight", {"fid": 1.0})  # Tune's own word on it is not waited for, nor taken
    assert len(again.told) == known == min(answered, total)
    # Which of the answers are failures depends on how many came before, so the calm one's are told.
    while (config := again.suggest("t")) != Searcher.FINISHED:
        told = calm.told.get(config["evaluation"])
        again.on_trial_complete("t", {"fid": 1.0, **told} if told else None)
    assert again.told == calm.told and again.strategy.search.log.decisions == calm.strategy.search.log.decisions


def test_no_more_trials_are_in_flight_than_the_pool_keeps_busy():
    assert [concurrency(workers) for workers in (1, 4, 16, 1000)] == [8, 8, 32, 64]
    searcher = _searcher()
    searcher.set_max_concurrency(2)
    assert [searcher.suggest(str(i)) is None for i in range(3)] == [False, False, True]


@pytest.mark.parametrize("name", ["experiment_state-2.json", "searcher-state-2.pkl"])
def test_state_that_was_cut_off_is_not_restored(tmp_path, name):
    files = ("tuner.pkl", "experiment_state-1.json", "searcher-state-1.pkl", "search_gen_state-1.json")
    for file in files:
        (tmp_path / file).write_text("{}")
    assert can_restore(str(tmp_path))
    (tmp_path / name).write_text('{"a": 1')
    assert not can_restore(str(tmp_path))


@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_a_sweep_killed_after_a_third_of_its_trials_decides_the_same_and_makes_no_chunk_again(parts, tmp_path):
    """SIGKILL of the driver; the same command goes on, and ends as a sweep that was left alone."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("num_steps: 4", "num_steps: 8"))
    # Tune writes its state down every second instead of every ten, so that there is one after a few trials.
    environment = {**os.environ, "EDM_RAY_LOCAL_CPUS": "3", "TUNE_GLOBAL_CHECKPOINT_S": "1"}

    def command(out: Path) -> list[str]:
        edm_ray = str(Path(sys.executable).with_name("edm-ray"))
        return [edm_ray, "sweep", *parts, "--space", str(space), "--out", str(out), "--workers", "2", *SIZES]

    subprocess.run(command(tmp_path / "calm"), env=environment, check=True, timeout=800)
    calm = json.loads((tmp_path / "calm" / "sweep.json").read_text())
    struck = subprocess.Popen(command(tmp_path / "struck"), env=environment)
    store, log = tmp_path / "struck" / "chunks", tmp_path / "struck" / "log"
    deadline = time.monotonic() + 600
    while len(list(log.glob("tune-*/eval_*/result.json"))) < len(calm["trials"]) // 3 or not _told(log):
        assert struck.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    struck.kill()
    struck.wait()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}
    told = _told(log)
    assert before and told and not (tmp_path / "struck" / "sweep.json").exists()
    subprocess.run(command(tmp_path / "struck"), env=environment, check=True, timeout=800)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there was not made again"
    assert len(list(log.glob("tune-*"))) == 1, "the experiment was restored, it is not a second one"
    written = [path.read_text().splitlines() for path in log.glob("tune-*/eval_*/result.json")]
    ended = [json.loads(lines[-1]) for lines in written if lines]  # none of those in flight when it was killed
    counts = collections.Counter(row["config"]["evaluation"] for row in ended)
    assert all(counts[name] == 1 for name in told), "what was answered was not run again"
    again = json.loads((tmp_path / "struck" / "sweep.json").read_text())
    for result in (calm, again):
        for trial in result["trials"]:
            trial.pop("seconds")
    assert again["trials"] == calm["trials"] and again["decisions"] == calm["decisions"]
    assert again["best"] == calm["best"] and again["confirmed"] == calm["confirmed"]


def _told(log: Path) -> list[str]:
    """Evaluations that the state on disk holds answers of."""
    found = sorted(log.glob("tune-*/searcher-state-*.pkl"))
    try:
        return list(json.loads(found[-1].read_text())) if found else []
    except ValueError:
        return []
