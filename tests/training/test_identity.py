"""Everything that a run keeps says which run it is of, and what is of another is refused, not used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edm_ray.cli import main
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.storage.commit import read_manifest
from edm_ray.training.metrics import read_metrics
from edm_ray.training.posthoc import synthesise
from edm_ray.training.run import checkpoint_store, identity_of, snapshots

SETTINGS = ["total_kimg=0.096", "tick_kimg=0.024", "checkpoint_kimg=0.024", "batch_size=24", "ema.sigma_rels=[0.05]"]
SETTINGS += ["ema.snapshot_kimg=0.048"]


def _train(digits_dir: Path, out: Path, *more: str, settings: tuple[str, ...] = ()) -> int:
    words = ["train", "--data", str(digits_dir / "train"), "--out", str(out), "--preset", "tiny", "--workers", "0"]
    return main([*words, "--snapshot-kimg", "0.048", "--set", *SETTINGS, *settings, *more])


@pytest.fixture(scope="module")
def runs(digits_dir, tmp_path_factory) -> tuple[Path, Path]:
    """Of two seeds."""
    base = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert _train(digits_dir, base / str(seed), settings=(f"seed={seed}",)) == 0
    return base / "0", base / "1"


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of the run of seed 0."""
    shutil.copytree(runs[0], tmp_path / "run")
    return tmp_path / "run"


def test_all_that_a_run_keeps_says_which_run_it_is_of(runs):
    identities = [identity_of(str(run)) for run in runs]
    assert len(set(identities)) == 2 and all(len(each) == 16 for each in identities)
    for run, identity in zip(runs, identities, strict=True):
        said = {read_manifest(str(path))["run"] for path in (run / "checkpoints").iterdir()}
        said |= {read_manifest(str(path))["run"] for path in (run / "ema-snapshots").iterdir()}
        said |= {open_model(str(path / "model")).about["run"] for path in (run / "snapshots").iterdir()}
        said |= {row["run"] for row in read_metrics(str(run))} | {open_model(str(run / "model")).about["run"]}
        assert said == {identity}


def test_a_checkpoint_of_another_run_is_refused_and_never_resumed(runs, run, digits_dir, capsys):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(runs[1] / "checkpoints", run / "checkpoints")
    assert _train(digits_dir, run, settings=("total_kimg=0.192",)) != 0
    said = capsys.readouterr().err
    assert "nimg-000000000096: a checkpoint of run " in said and "--fresh" in said and "Traceback" not in said
    assert identity_of(str(runs[1])) in said and identity_of(str(run)) in said
    assert _train(digits_dir, run, "--fresh") == 0, "which deletes them"


def test_a_checkpoint_under_another_number_is_damaged(run):
    store = run / "checkpoints"
    (store / "nimg-000000000096").rename(store / "nimg-000000000999")
    assert checkpoint_store(str(run)).latest().images_seen == 72


def test_metrics_of_another_run_are_refused(runs, run, digits_dir, capsys):
    shutil.copy(runs[1] / "metrics.jsonl", run / "metrics.jsonl")
    assert _train(digits_dir, run, settings=("total_kimg=0.192",)) != 0
    said = capsys.readouterr().err
    assert f"metrics.jsonl: has rows of run {identity_of(str(runs[1]))}" in said
    rows = [{"nimg": 24, "loss": 1.0}]  # which say nothing
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _train(digits_dir, run, settings=("total_kimg=0.192",)) != 0


def test_snapshots_of_another_run_are_refused(runs, run):
    shutil.copytree(runs[1] / "snapshots" / "000000000048", run / "snapshots" / "000000000049")
    with pytest.raises(InputError, match=r"000000000049/model: is of run"):
        snapshots(str(run))
    shutil.rmtree(run / "ema-snapshots" / "nimg-000000000048")
    shutil.copytree(runs[1] / "ema-snapshots" / "nimg-000000000048", run / "ema-snapshots" / "nimg-000000000048")
    with pytest.raises(InputError, match=r"nimg-000000000048: is of run"):
        synthesise(str(run), 0.05)


def test_names_that_no_run_writes_are_ignored_and_listed(run, digits_dir, caplog):
    """A copy by hand, a number of other length, a file."""
    expected, average = snapshots(str(run)), synthesise(str(run), 0.05)
    for folder, name in (("checkpoints", "nimg-000000000096"), ("ema-snapshots", "nimg-000000000048")):
        shutil.copytree(run / folder / name, run / folder / f"{name}.bak")
        shutil.copytree(run / folder / name, run / folder / "nimg-96")
        (run / folder / "notes.txt").write_text("x")
    shutil.copytree(run / "snapshots" / "000000000048", run / "snapshots" / "copy of 000000000048")
    store = CheckpointStore(str(run / "checkpoints"))
    assert store.committed() == [72, 96] and store.latest().images_seen == 96
    assert snapshots(str(run)) == expected
    again = synthesise(str(run), 0.05)
    assert again[1] == average[1] and all((again[0][name] == average[0][name]).all() for name in average[0])
    for name in ("nimg-000000000096.bak", "nimg-96", "notes.txt", "copy of 000000000048"):
        assert name in caplog.text
    assert _train(digits_dir, run, settings=("total_kimg=0.144",)) == 0
    assert (run / "checkpoints" / "nimg-000000000096.bak").exists()
