"""Snapshots: models and small grids along the way; nothing of them reaches the training, and none can stop it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edm_ray.cli import main
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.models import open_model
from edm_ray.training import checkpoints, grid
from edm_ray.training.grid import GridDrawer
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import claim_run, grid_uri, model_uri, snapshot_model_uri, snapshots
from edm_ray.training.schedule import Every
from edm_ray.training.step import TrainingStep
from tests.training.together import run_together

MOMENTS = [96, 192, 240]
KIMG = 0.096


@pytest.fixture(scope="module")
def dataset(digits_dir):
    return open_dataset(str(digits_dir / "train"))


@pytest.fixture(autouse=True, scope="module")
def time_enough():
    """A step of these runs takes milliseconds: a share of the time since the last snapshot would never do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "SHARE", 1e6)
        yield


def _train(dataset, uri: str, snapshot_kimg: float | None = KIMG) -> str:
    config = configure(tiny(dataset.shape), None, [])
    claim_run(uri, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=uri, snapshot_kimg=snapshot_kimg))
    return uri


@pytest.fixture(scope="module")
def calm(dataset, tmp_path_factory) -> str:
    return _train(dataset, str(tmp_path_factory.mktemp("calm") / "run"))


def _weights(uri: str) -> bytes:
    return open_model(model_uri(uri)).weights


def _losses(uri: str) -> list[float]:
    return [row["loss"] for row in read_metrics(uri)]


def test_training_with_snapshots_has_the_bits_of_training_without(dataset, calm, tmp_path):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    plain = _train(dataset, str(tmp_path / "plain"), None)
    assert _weights(plain) == _weights(calm) and _losses(plain) == _losses(calm)
    for path in Path(plain).glob("checkpoints/*/*"):
        assert path.read_bytes() == (Path(calm) / path.relative_to(plain)).read_bytes()
    assert not (tmp_path / "plain" / "snapshots").exists() and snapshots(plain) == []
    _train(dataset, str(tmp_path / "with"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_snapshots_are_model_directories_listed_in_order_and_the_last_is_the_result(calm):
    assert snapshots(calm) == [(nimg, snapshot_model_uri(calm, nimg)) for nimg in MOMENTS]
    models = [open_model(uri) for _, uri in snapshots(calm)]
    assert models[-1].weights == _weights(calm) != models[0].weights
    assert [model.about["images_seen"] for model in models] == MOMENTS


def test_a_snapshot_that_is_not_whole_is_not_listed(calm, dataset, tmp_path):
    uri = _train(dataset, str(tmp_path / "run"))
    Path(snapshot_model_uri(uri, 192), "manifest.json").unlink()
    assert [nimg for nimg, _ in snapshots(uri)] == [96, 240]


def test_grids_have_the_pixels_that_generate_makes_and_their_cost_is_in_the_metrics(calm, tmp_path):
    for row in read_metrics(calm):
        assert ("grid_s" in row) == (row["nimg"] in MOMENTS) and "grid_skipped" not in row
    out = str(tmp_path / "grid.png")
    arguments = ["generate", "--model", snapshot_model_uri(calm, 192), "--out", out, "--num", "50"]
    assert main(arguments) == 0
    assert np.array_equal(*(np.asarray(Image.open(path)) for path in (out, grid_uri(calm, 192))))
    assert "192" in Image.open(grid_uri(calm, 192)).text["images seen"]


def test_after_a_kill_and_resume_models_and_grids_are_the_same_bytes(dataset, calm, tmp_path, monkeypatch):
    uri, steps, original = str(tmp_path / "run"), 0, TrainingStep.take

    def take(self, images):
        nonlocal steps
        steps += 1
        if steps == 7:  # after the snapshot at 96
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(TrainingStep, "take", take)
    with pytest.raises(KeyboardInterrupt):
        _train(dataset, uri)
    monkeypatch.setattr(TrainingStep, "take", original)
    _train(dataset, uri)
    assert [nimg for nimg, _ in snapshots(uri)] == MOMENTS
    for nimg in MOMENTS:
        assert Path(grid_uri(uri, nimg)).read_bytes() == Path(grid_uri(calm, nimg)).read_bytes()
        assert open_model(snapshot_model_uri(uri, nimg)).weights == open_model(snapshot_model_uri(calm, nimg)).weights


def test_a_grid_that_would_take_too_long_is_given_up_early_and_said(dataset, calm, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "SHARE", 0.0)
    uri = _train(dataset, str(tmp_path / "run"))
    assert _weights(uri) == _weights(calm) and not Path(grid_uri(uri, 96)).exists()
    skipped = [row["grid_skipped"] for row in read_metrics(uri) if "grid_s" in row]
    assert len(skipped) == len(MOMENTS) and all("would take" in why and "0 s are allowed" in why for why in skipped)
    evaluations = []
    model = open_model(snapshot_model_uri(uri, 96))
    average = model.denoiser().module
    average.register_forward_hook(lambda *_: evaluations.append(1))
    drawer = GridDrawer(uri, model.config.network, dataset.codec)
    assert "grid_skipped" in drawer.draw(average, 96) and len(evaluations) == 2
    assert not average._forward_pre_hooks


def test_a_grid_that_raises_is_reported_and_training_has_the_same_bits(dataset, calm, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise PermissionError("not there")

    monkeypatch.setattr(grid, "save_grid", broken)
    uri = _train(dataset, str(tmp_path / "run"))
    assert _weights(uri) == _weights(calm)
    assert {row["grid_skipped"] for row in read_metrics(uri) if "grid_s" in row} == {"PermissionError: not there"}


def test_a_snapshot_that_cannot_be_written_leaves_the_training_as_it_was_and_is_named(
    digits_dir, dataset, calm, tmp_path, monkeypatch, capsys
):
    original = checkpoints.save_model

    def save_model(uri, *more):
        if "/snapshots/" in uri:
            raise PermissionError("not there")
        return original(uri, *more)

    monkeypatch.setattr(checkpoints, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(checkpoints, "save_model", save_model)
    assert main(_command(digits_dir, tmp_path / "run")) == 0
    uri, said = str(tmp_path / "run"), capsys.readouterr().out
    assert open_model(model_uri(uri)).weights == _weights(calm) and snapshots(uri) == []
    for nimg in MOMENTS:
        assert f"warning: {snapshot_model_uri(uri, nimg)} was not written; see the log" in said


def _command(digits_dir, out, *more: str) -> list[str]:
    base = ["train", "--data", str(digits_dir / "train"), "--out", str(out), "--preset", "tiny", "--no-ray"]
    return [*base, "--snapshot-kimg", str(KIMG), *more]


def test_the_command_says_what_became_of_each_grid_and_what_to_do_next(digits_dir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert main(_command(digits_dir, out, "--set", "total_kimg=0.096")) == 0
    said = capsys.readouterr().out
    assert f"snapshot at 96 images: {grid_uri(str(out), 96)}, drawn in " in said
    assert f"snapshots: 1, the last {snapshot_model_uri(str(out), 96)}" in said
    assert "trained 96 images in" in said and "last loss" in said
    assert f"edm-ray generate --model {out}/model --out samples.png" in said
    assert f"edm-ray sweep --model {out}/model --reference REFERENCE" in said
    assert main(_command(digits_dir, out, "--set", "total_kimg=0.096")) == 0
    assert "nothing was left to train" in capsys.readouterr().out
    monkeypatch.setattr(grid, "SHARE", 0.0)
    assert main(_command(digits_dir, out, "--set", "total_kimg=0.192")) == 0
    assert "snapshot at 192 images: no grid (would take" in capsys.readouterr().out


def test_a_wrong_interval_is_refused_before_anything_is_written(digits_dir, tmp_path, capsys):
    arguments = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "run"), "--no-ray"]
    assert main([*arguments, "--snapshot-kimg", "0"]) == 2
    assert "--snapshot-kimg 0: give more than 0" in capsys.readouterr().err and not (tmp_path / "run").exists()


def _with_grids(rank: int):
    grid.SHARE = 1e6
    from edm_ray.training.signals import no_signal

    return no_signal


def test_two_workers_of_which_one_draws_stay_in_step_and_have_the_bits_of_two_that_do_not_draw(digits_dir, tmp_path):
    plain, drawn = str(tmp_path / "plain"), str(tmp_path / "drawn")
    data = str(digits_dir / "heldout")
    assert run_together(2, data, plain, []) == [0, 0]
    assert run_together(2, data, drawn, [], _with_grids, snapshot_kimg=KIMG) == [0, 0]
    assert _weights(plain) == _weights(drawn) and _losses(plain) == _losses(drawn)
    assert [nimg for nimg, _ in snapshots(drawn)] == MOMENTS
    assert all(Path(grid_uri(drawn, nimg)).exists() for nimg in MOMENTS)


def test_what_is_due_is_due_once_for_each_multiple_that_was_passed_and_at_the_end():
    every = Every(0.1, 0)
    moments = [(48, False), (96, False), (144, False), (192, False), (400, False), (432, True), (433, True)]
    assert [every.due(*moment) for moment in moments] == [False, False, True, False, True, True, True]
    never = Every(None, 0)
    assert not never.due(10_000, False) and not never.due(10_000, True)
