"""Snapshots: drawn beside the training, once each, the same bytes each time; nothing of them reaches the training."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_ray.cli import main
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.diffusion.samplers import sampler as sampler_of
from edm_ray.distributed.snapshot_runners import ProcessRunner, RayRunner
from edm_ray.distributed.snapshots import Follower, SnapshotPlan, parse_place
from edm_ray.distributed.train import ask_of, keep_to_share, scaling_of
from edm_ray.errors import InputError
from edm_ray.evaluation.chunks import chunks_for
from edm_ray.evaluation.measure import estimate_fid
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.evaluate import EvaluationSpec
from edm_ray.generation.generate import generate
from edm_ray.generation.snapshot import Job, draw
from edm_ray.models import open_model, save_model
from edm_ray.storage import uris
from edm_ray.training import saves
from edm_ray.training.engine import Place, Trainer, train
from edm_ray.training.run import claim_run, model_uri, read_metrics
from edm_ray.training.snapshots import FidRows, add_to_log, fid_lines, picture_uri, read_log, snapshot_model_uri

MOMENTS = [96, 192, 240]
KIMG = 0.096


@pytest.fixture(scope="module")
def dataset(digits_dir):
    return open_dataset(str(digits_dir / "train"))


@pytest.fixture(scope="module")
def reference(digits_dir, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("reference") / "r")
    assert main(["reference", "--data", str(digits_dir / "train"), "--out", out, "--extractor", "digits"]) == 0
    return out


@pytest.fixture(scope="module")
def sampler(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("sampler") / "best-sampler.yaml"
    path.write_text("sampler:\n  num_steps: 3\n")
    return str(path)


def _train(dataset, uri: str, snapshot_kimg: float | None = KIMG) -> str:
    config = configure(tiny(dataset.shape), None, [])
    claim_run(uri, config, dataset)
    train(config, dataset, uri, Place(), {}, snapshot_kimg=snapshot_kimg)
    return uri


@pytest.fixture(scope="module")
def calm(dataset, tmp_path_factory) -> str:
    return _train(dataset, str(tmp_path_factory.mktemp("calm") / "run"))


def _plan(**more) -> SnapshotPlan:
    fields = {"kimg": KIMG, "settings": sampler_of(num_steps=3), "reference": None, "reference_hash": None}
    return SnapshotPlan(**{**fields, "num": 100, "device": "cpu", "share": 1.0, "after": False, **more})


class Here:
    """Draws at once, in this process. ``broken``: moments that raise; ``full``: why there is no room."""

    def __init__(self, broken=(), full: str | None = None) -> None:
        self.broken, self.full, self.jobs, self.record = broken, full, [], None

    def obstacle(self):
        return self.full

    def start(self, job: Job) -> None:
        self.jobs.append(job.nimg)
        self.record = job

    def result(self):
        if self.record.nimg in self.broken:
            raise ValueError("no such thing\nand more")
        return draw(Job.from_json(self.record.to_json()))

    def cancel(self) -> None:
        pass


def _follow(uri: str, runner, plan=None, during: int = 0) -> list[str]:
    """Lines said by a follower that looks ``during`` times while training runs, and is closed then."""
    lines: list[str] = []
    follower = Follower(plan or _plan(), uri, runner, lines.append)
    for _ in range(during):
        follower._guarded(training=True)
    follower.close(done=True)
    return lines


def _copy_of(calm: str, target: Path) -> str:
    shutil.copytree(calm, target)
    return str(target)


def test_training_with_snapshots_has_the_bits_of_training_without(dataset, calm, tmp_path):
    plain = _train(dataset, str(tmp_path / "plain"), None)
    assert open_model(model_uri(plain)).weights == open_model(model_uri(calm)).weights
    assert [row["loss"] for row in read_metrics(plain)] == [row["loss"] for row in read_metrics(calm)]
    assert not (tmp_path / "plain" / "snapshots").exists()
    assert sorted(int(name) for name in uris.list_names(f"{calm}/snapshots") if name.isdecimal()) == MOMENTS
    # The last one is the result; the others are not.
    models = [open_model(snapshot_model_uri(calm, nimg)) for nimg in MOMENTS]
    assert models[-1].weights == open_model(model_uri(calm)).weights != models[0].weights
    assert [model.about["images_seen"] for model in models] == MOMENTS


def test_after_a_kill_and_resume_the_grids_are_the_same_bytes_and_none_is_drawn_twice(
    dataset, calm, tmp_path, monkeypatch
):
    calm, uri, steps, original = _copy_of(calm, tmp_path / "calm"), str(tmp_path / "run"), 0, Trainer.step
    _follow(calm, Here())

    def step(self, pixels):
        nonlocal steps
        steps += 1
        if steps == 7:  # after the snapshot at 96
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        _train(dataset, uri)
    monkeypatch.setattr(Trainer, "step", original)
    first, second = Here(), Here()
    _follow(uri, first)
    _train(dataset, uri)
    _follow(uri, second)
    assert (first.jobs, second.jobs) == ([96], [192, 240])
    assert [row["nimg"] for row in read_log(uri)] == MOMENTS
    for nimg in MOMENTS:
        assert Path(picture_uri(uri, nimg)).read_bytes() == Path(picture_uri(calm, nimg)).read_bytes()


def test_other_weights_or_another_sampler_are_drawn_anew_and_other_weights_replace_their_row(calm, tmp_path):
    uri = _copy_of(calm, tmp_path / "run")
    _follow(uri, Here())
    other = open_model(snapshot_model_uri(uri, 192))
    state = other.denoiser().state_dict()
    save_model(snapshot_model_uri(uri, 96), other.config, state, {**other.about, "images_seen": 96})
    again = Here()
    _follow(uri, again)
    assert again.jobs == [96] and len(read_log(uri)) == 3
    again = Here()
    _follow(uri, again, _plan(settings=sampler_of(num_steps=2)))
    assert again.jobs == MOMENTS and len(read_log(uri)) == 6


def test_a_snapshot_that_raises_is_named_and_the_others_are_drawn_and_the_next_command_tries_it_again(calm, tmp_path):
    uri = _copy_of(calm, tmp_path / "run")
    lines = _follow(uri, Here(broken=[192]), during=8)
    assert "warning: snapshot at 192 images failed (ValueError: no such thing); training is not touched" in lines
    assert [row["nimg"] for row in read_log(uri)] == [96, 240]
    again = Here()
    _follow(uri, again)
    assert again.jobs == [192]


def test_a_damaged_model_is_named_and_the_others_are_drawn(calm, tmp_path):
    uri = _copy_of(calm, tmp_path / "run")
    Path(snapshot_model_uri(uri, 96), "model.safetensors").write_bytes(b"damaged")
    Path(snapshot_model_uri(uri, 192), "manifest.json").write_bytes(b"{")
    lines = _follow(uri, Here())
    assert [row["nimg"] for row in read_log(uri)] == [240]
    for nimg in (96, 192):
        assert any(f"snapshot at {nimg} images failed (IntegrityError" in line for line in lines)


def test_a_snapshot_that_cannot_be_written_leaves_the_training_as_it_was_and_is_named(
    dataset, calm, tmp_path, monkeypatch
):
    original = saves.save_model

    def save_model(uri, *more):
        if "/snapshots/" in uri:
            raise PermissionError("not there")
        return original(uri, *more)

    monkeypatch.setattr("edm_ray.training.writer.FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(saves, "save_model", save_model)
    uri = _train(dataset, str(tmp_path / "run"))
    assert open_model(model_uri(uri)).weights == open_model(model_uri(calm)).weights
    lines: list[str] = []
    follower = Follower(_plan(), uri, Here(), lines.append)
    for row in read_metrics(uri):
        follower.on_tick(row)
    follower.close(done=True)
    assert [line for line in lines if "was not written" in line] == [
        f"warning: the model of the snapshot at {nimg} images was not written; see the log" for nimg in MOMENTS
    ]


def test_deferred_is_said_once_with_the_reason_and_done_at_the_end(calm, tmp_path):
    uri, runner = _copy_of(calm, tmp_path / "run"), Here(full="the cluster has 2 CPUs, training may take 2")
    lines = _follow(uri, runner, during=3)
    deferred = [line for line in lines if "deferred to the end" in line]
    assert len(deferred) == 3 and all("the cluster has 2 CPUs" in line for line in deferred)
    assert runner.jobs == MOMENTS
    uri = _copy_of(calm, tmp_path / "after")
    assert any("--snapshot-on after" in line for line in _follow(uri, Here(), _plan(after=True), during=1))


def test_a_run_that_fails_or_is_stopped_draws_nothing_more_and_says_so(calm, tmp_path):
    uri, lines, runner = _copy_of(calm, tmp_path / "run"), [], Here(full="no room")
    follower = Follower(_plan(), uri, runner, lines.append)
    follower._guarded(training=True)
    assert follower.close(done=False) is False
    assert runner.jobs == [] and lines[-1] == "snapshots not drawn: 3; the same command draws them"


def _command(digits_dir, out, *more: str) -> list[str]:
    base = ["train", "--data", str(digits_dir / "train"), "--out", str(out), "--preset", "tiny"]
    return [*base, "--snapshot-kimg", str(KIMG), *more]


def test_the_command_draws_in_a_process_of_its_own_and_ends_with_a_summary(
    digits_dir, calm, reference, sampler, tmp_path, capsys
):
    """Grid as `edm-ray generate` draws it; the same weights as without; FIDs in the log, the summary and a tracker."""
    out = tmp_path / "run"
    more = ["--snapshot-fid", reference, "--snapshot-images", "100", "--snapshot-sampler", sampler]
    more += ["--no-ray", "--set", "total_kimg=0.096", "--track", "tensorboard"]
    assert main(_command(digits_dir, out, *more)) == 0
    said = capsys.readouterr().out
    (row,) = read_log(str(out))
    assert (out / "model" / "model.safetensors").read_bytes() == open_model(snapshot_model_uri(calm, 96)).weights
    assert row["n"] == 100 and row["extractor"] == "digits" and row["low"] < row["fid"] < row["high"]
    assert f"96 images: FID {row['fid']:.3f}, 95 % interval {row['low']:.3f} to {row['high']:.3f}" in said
    assert "trained 96 images in" in said and "last loss" in said and f"best: 96 images, {out}/snapshots" in said
    assert f"edm-ray generate --model {out}/model --out samples.png" in said
    assert f"edm-ray sweep --model {out}/model --reference {reference}" in said
    assert "tensorboard: 3 rows sent" in said  # two of metrics, and the FID behind them
    again = str(tmp_path / "again.png")
    assert main(["generate", "--model", f"{out}/model", "--out", again, "--sampler", sampler]) == 0
    grids = [np.asarray(Image.open(path)) for path in (again, picture_uri(str(out), 96))]
    assert np.array_equal(*grids)
    # The same command has nothing left to do.
    assert main(_command(digits_dir, out, *more)) == 0
    assert "nothing was left to train" in capsys.readouterr().out and len(read_log(str(out))) == 1


def test_a_process_that_dies_is_a_failed_snapshot(calm, tmp_path):
    uri = _copy_of(calm, tmp_path / "run")
    runner = ProcessRunner("cpu")
    runner.start(_plan().job(uri, 96))
    os.kill(runner.process.pid, signal.SIGKILL)
    runner.process.wait()
    with pytest.raises(RuntimeError, match="ended with -9"):
        runner.result()


@pytest.mark.fault
def test_a_killed_command_leaves_no_process_and_the_same_command_ends_with_the_same_bytes(
    digits_dir, calm, sampler, tmp_path
):
    calm, out = _copy_of(calm, tmp_path / "calm"), tmp_path / "run"
    _follow(calm, Here())
    command = [sys.executable, "-c", "import sys; from edm_ray.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += _command(digits_dir, out, "--no-ray", "--snapshot-sampler", sampler)
    process = subprocess.Popen(command)
    deadline, children = time.monotonic() + 120, []
    while not children and time.monotonic() < deadline:
        time.sleep(0.05)
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
    assert children
    process.kill()
    process.wait()
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert subprocess.run(command).returncode == 0
    for nimg in MOMENTS:
        assert Path(picture_uri(str(out), nimg)).read_bytes() == Path(picture_uri(calm, nimg)).read_bytes()


def test_the_fid_is_that_of_the_chunks_that_evaluate_makes(calm, reference):
    """Without Ray; the command itself is in the slow test below."""
    spec_reference, spec = open_reference(reference)
    model = open_model(snapshot_model_uri(calm, 96))
    bench = EvaluationSpec(model=model, extractors=(spec,), store="")
    denoiser, extractor = model.denoiser(), spec.load()
    chunks = chunks_for(
        bench.generator(extractor.identity, "cpu"), sampler_of(num_steps=3).effective(denoiser), 1 << 31, 150
    )
    made = [generate(denoiser, chunk.seeds, chunk.settings, "random") for chunk in chunks]
    features = np.concatenate([extractor.extract(images) for images in made])[:150]  # of whole chunks
    seeds = np.concatenate([chunk.seeds.numpy() for chunk in chunks])[:150]
    wanted = estimate_fid(features, seeds, spec_reference, 10)
    plan = _plan(reference=reference, reference_hash=spec_reference.moments.hash, num=150)
    record = draw(dataclasses.replace(plan.job(calm, 96), picture=str(Path(calm).parent / "x.png")))
    assert [record[key] for key in ("fid", "se", "n")] == [wanted.fid, wanted.se, 150]


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_it_is_a_task_and_its_fid_is_that_of_evaluate(
    ray_session, digits_dir, calm, reference, sampler, tmp_path, capsys
):
    """4 CPUs, 1 worker: there is room beside it. With 4 workers there is none, and it is deferred."""
    out = tmp_path / "run"
    fid = ["--snapshot-fid", reference, "--snapshot-images", "200", "--snapshot-sampler", sampler]
    assert main(_command(digits_dir, out, *fid, "--set", "total_kimg=0.096")) == 0
    assert "deferred" not in capsys.readouterr().out
    (row,) = read_log(str(out))
    where = ["--model", snapshot_model_uri(str(out), 96), "--reference", reference, "--out", str(tmp_path / "e")]
    assert main(["evaluate", *where, "--num", "200", "--sampler", sampler]) == 0
    wanted = json.loads((tmp_path / "e" / "evaluation.json").read_text())["samples"]
    assert [row[key] for key in ("fid", "se", "n", "debiased")] == [
        wanted[key] for key in ("fid", "se", "n", "debiased")
    ]
    assert row["reference_hash"] == wanted["reference"]
    assert RayRunner("cpu", 1.0, 3, "cpu").obstacle() is None
    assert "the cluster has 4 CPUs, training may take 4" in RayRunner("cpu", 1.0, 4, "cpu").obstacle()
    with pytest.raises(InputError, match=r"needs 0.25 GPUs on one node.*give cpu or after"):
        RayRunner("cuda", 0.25, 1, "cpu")
    lines: list[str] = []
    uri = _copy_of(calm, tmp_path / "full")
    plan = dataclasses.replace(_plan(), after=False)
    follower = Follower(plan, uri, RayRunner("cpu", 1.0, 4, "cpu"), lines.append)
    follower._guarded(training=True)
    assert "deferred to the end of training: the cluster has 4 CPUs" in lines[0] and follower.running is None
    Path(snapshot_model_uri(uri, 192), "model.safetensors").write_bytes(b"damaged")
    follower.close(done=True)
    assert [row["nimg"] for row in read_log(uri)] == [96, 240]
    assert any("snapshot at 192 images failed (IntegrityError" in line for line in lines)


def test_told_to_stop_while_it_draws_at_the_end_it_ends_and_the_rest_is_left_to_the_next_command(calm, tmp_path):
    uri, lines, runner = _copy_of(calm, tmp_path / "run"), [], Here()
    follower = Follower(_plan(), uri, runner, lines.append)
    assert follower.close(done=True, must_stop=lambda: len(runner.jobs) == 2) is False
    assert "the same command draws them" in lines[-1] and len(read_log(uri)) == 1
    assert _follow(uri, again := Here()) and again.jobs == [192, 240]


def test_fids_reach_trackers_in_ascending_order_each_once():
    rows = FidRows(48)
    for nimg in (96, 144, 192):
        rows.add({"nimg": nimg, "fid": 1.0, "low": 0.5, "high": 1.5})
    rows.add({"nimg": 10})  # no FID
    assert rows.onto({"nimg": 48}) == {"nimg": 48}  # written again by a resumed run: trackers have it
    assert rows.onto({"nimg": 144, "loss": 2.0})["snapshot/nimg"] == 96
    rest = rows.rest()
    assert [(row["nimg"], row["snapshot/nimg"]) for row in rest] == [(145, 144), (146, 192)] and rows.rest() == []


def test_the_best_fid_is_named_and_long_lists_are_cut(tmp_path):
    about = {"n": 100, "fid_seeds": [0, 99], "reference": "digits (n=1), extractor digits", "how": "a"}
    for i in range(20):
        add_to_log(str(tmp_path), {"nimg": i, "fid": abs(i - 3) + 1.0, "low": 0.0, "high": 9.0, **about})
    lines = fid_lines(str(tmp_path), read_log(str(tmp_path)))
    assert lines[0] == "the last 12 of 20:" and len(lines) == 15
    assert lines[-1] == f"best: 3 images, {snapshot_model_uri(str(tmp_path), 3)}"
    assert fid_lines("r", [{"nimg": 1}]) == []


def test_wrong_flags_are_refused_before_anything_is_written(digits_dir, tmp_path, capsys):
    out = tmp_path / "run"
    for more, message in (
        (["--snapshot-on", "gpu:2"], "--snapshot-on gpu:2: give cpu, gpu:SHARE"),
        (["--snapshot-fid", str(tmp_path / "none")], "no reference there"),
        (["--snapshot-images", "50"], "--snapshot-images 50: give 100 or more"),
        (["--snapshot-kimg", "0"], "--snapshot-kimg 0: give more than 0"),
    ):
        assert main(_command(digits_dir, out, "--no-ray", *more)) == 2
        assert message in capsys.readouterr().err
    arguments = ["train", "--data", str(digits_dir / "train"), "--out", str(out), "--no-ray", "--snapshot-fid", "r"]
    assert main(arguments) == 2 and "give --snapshot-kimg N too" in capsys.readouterr().err
    assert not out.exists()
    assert parse_place("gpu:0.25", "cpu") == ("cuda", 0.25, False) and parse_place("after", "cuda") == (
        "cuda",
        1.0,
        True,
    )


def test_a_share_is_kept_free_on_cards_that_train_and_only_there():
    assert _plan(device="cuda", share=0.3).gpus_of_a_worker("cuda") == 0.7
    for plan, training in (
        (_plan(device="cuda", share=0.3), "cpu"),
        (_plan(device="cuda", share=1.0, after=True), "cuda"),
        (_plan(), "cuda"),
    ):
        assert plan.gpus_of_a_worker(training) == 1.0


def test_workers_ask_ray_for_what_a_snapshot_leaves_and_the_snapshot_for_its_share(monkeypatch):
    ask = ask_of(2, "cuda", 4, 0.75)
    scaling = scaling_of((2, 2), ask)
    assert (ask.count, ask.gpus, ask.cpus, ask.fits({"GPU": 2.0})) == (2, 0.75, 0.0, 2)
    assert scaling.use_gpu and scaling.num_workers == 2 and scaling._resources_per_worker_not_none == {"GPU": 0.75}
    assert scaling_of((1, 4), ask_of(1, "cuda", 4, 1.0))._resources_per_worker_not_none == {"GPU": 1}
    cpu = scaling_of((2, 2), ask_of(2, "cpu", 4, 1.0))
    assert not cpu.use_gpu and cpu._resources_per_worker_not_none == {"CPU": 4}

    cards = [{"GPU": 1.0}, {"GPU": 1.0}]
    monkeypatch.setattr("edm_ray.distributed.cluster.preflight.nodes_there", lambda: cards)
    monkeypatch.setattr("edm_ray.distributed.shipping.environment", dict)
    runner = RayRunner("cuda", 0.25, 2, "cuda", 4, 0.75)
    options = runner.task._default_options
    assert (options["num_gpus"], options["num_cpus"]) == (0.25, 0.0) and runner.obstacle() is None
    # Whole cards leave no room, nor does a lost node: its worker takes the card of the one that is left.
    assert "has 2 GPUs, training may take 2, a snapshot 0.25" in RayRunner("cuda", 0.25, 2, "cuda").obstacle()
    cards.pop()
    assert "has 1 GPUs, training may take 1.5, a snapshot 0.25" in runner.obstacle()


def test_a_worker_keeps_to_its_share_of_the_memory_only_where_it_shares_a_card(monkeypatch):
    bounded = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *bound: bounded.append(bound))
    for device, gpus in (("cpu", 0.75), ("cpu", 0.0), ("cuda:1", 1.0), ("cuda:1", 0.75)):
        keep_to_share(device, gpus)
    assert bounded == [(0.75, "cuda:1")]


def test_shares_that_ray_could_not_keep_are_refused_before_anything_is_written(digits_dir, tmp_path, capsys):
    out = tmp_path / "run"
    on_ray = ["--device", "cuda", "--snapshot-on"]
    for more, *messages in (
        ([*on_ray, "gpu:0.5"], "--snapshot-on gpu:0.5: ", "two of them on one card", "give a share below 0.5"),
        ([*on_ray, "gpu:1"], "--snapshot-on gpu:1: ", "give a share below 0.5"),
        ([*on_ray, "gpu:0.49999"], "give a share below 0.5"),
        ([*on_ray, "gpu:0.00001"], "--snapshot-on gpu:0.00001: give cpu, gpu:SHARE"),
        ([*on_ray, "gpu:0"], "--snapshot-on gpu:0: give cpu, gpu:SHARE"),
        (
            [*on_ray, "gpu:0.25", "--workers", "2:8"],
            "--snapshot-on gpu:0.25 with --workers 2:8: ",
            "give --snapshot-on cpu or after, or a fixed number such as --workers 8",
        ),
    ):
        assert main(_command(digits_dir, out, *more)) == 2
        error = capsys.readouterr().err
        assert all(message in error for message in messages), error
    assert not out.exists()
    for more in (
        [*on_ray, "gpu:0.25", "--workers", "8"],
        [*on_ray, "after", "--workers", "2:8"],
        [*on_ray, "cpu", "--workers", "2:8"],
        ["--snapshot-on", "gpu:0.5", "--workers", "2:8"],  # training on CPUs
        [*on_ray, "gpu:0.5", "--no-ray"],
    ):
        assert main(_command(digits_dir, out, "--dry-run", *more)) == 0


_ON_LOGICAL_GPUS = """
import sys, threading, time
from pathlib import Path

import ray
from ray.train import RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from edm_ray.errors import InputError
from edm_ray.distributed import snapshot_runners
from edm_ray.distributed.cluster.preflight import Ask, preflight
from edm_ray.distributed.train import ask_of, scaling_of

there = Path(sys.argv[1])


def worker():
    rank = ray.train.get_context().get_world_rank()
    (there / f"worker-{rank}").write_text(str(ray.get_gpu_ids()[0]))
    while not (there / "over").exists():
        time.sleep(0.1)


def draw(job):
    return {"card": str(ray.get_gpu_ids()[0])}


def snapshot():
    try:
        while len(list(there.glob("worker-*"))) < 2:
            time.sleep(0.1)
        runner = snapshot_runners.RayRunner("cuda", 0.25, 2, "cuda", 1, 0.75)
        assert runner.obstacle() is None
        runner.start(None)
        deadline = time.monotonic() + 120
        while (record := runner.result()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        (there / "snapshot").write_text(record["card"])
    finally:
        (there / "over").touch()


ray.init(num_cpus=4, num_gpus=2, include_dashboard=False)
try:
    preflight(ask_of(3, "cuda", 1, 0.75), patience=0.0)
except InputError as error:
    (there / "refused").write_text(str(error))
ask = ask_of(2, "cuda", 1, 0.75)
preflight(ask)
snapshot_runners._draw_as_task = draw
thread = threading.Thread(target=snapshot, daemon=True)
thread.start()
run_config = RunConfig(name="r", storage_path=str(there / "log"))
DataParallelTrainer(worker, scaling_config=scaling_of((2, 2), ask), run_config=run_config).fit()
"""


@pytest.mark.slow
@pytest.mark.ray
def test_on_two_logical_gpus_ray_gives_each_worker_a_card_and_a_snapshot_the_rest_of_one(tmp_path):
    """Scheduling only, no CUDA. A Ray of its own: that of the other tests has no GPUs."""
    environment = {name: value for name, value in os.environ.items() if name != "EDM_RAY_LOCAL_CPUS"}
    subprocess.run([sys.executable, "-c", _ON_LOGICAL_GPUS, str(tmp_path)], check=True, timeout=400, env=environment)
    workers = {(tmp_path / f"worker-{rank}").read_text() for rank in range(2)}
    assert workers == {"0", "1"} and (tmp_path / "snapshot").read_text() in workers
    assert "give --workers 2 or fewer" in (tmp_path / "refused").read_text()
