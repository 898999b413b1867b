"""`edm-ray evaluate --follow RUN`: the FIDs of a training run's snapshots."""

from __future__ import annotations

import pytest

import edm_ray as edm
from edm_ray.cli import main
from edm_ray.training.run import snapshots


@pytest.fixture(scope="module")
def run(digits_dir, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("follow") / "run")
    data = str(digits_dir / "train")
    edm.train(data, "tiny", out, overrides=["total_kimg=0.192"], snapshot_kimg=0.096)
    return out


@pytest.fixture(scope="module")
def reference_dir(digits_dir, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("follow") / "reference")
    return edm.reference(str(digits_dir / "heldout"), out, extractor="digits").uri


def test_each_snapshot_is_measured_once_and_as_evaluate_measures_it(run, reference_dir, tmp_path, capsys):
    command = ["evaluate", "--follow", run, "--reference", reference_dir, "--out", str(tmp_path / "fids")]
    command += ["--num", "100", "--workers", "0", "--set", "num_steps=3"]
    assert main(command) == 0
    first = capsys.readouterr().out
    made = sorted((tmp_path / "fids").rglob("*.safetensors"))
    assert main(command) == 0
    assert capsys.readouterr().out == first and sorted((tmp_path / "fids").rglob("*.safetensors")) == made
    found = snapshots(run)
    assert [nimg for nimg, _ in found] == [96, 192] and first.count("FID") == 2
    last = edm.evaluate(found[-1][1], reference_dir, edm.Heun(num_steps=3), num=100)
    assert f"192 images: {last.fid.describe()}" in first


def test_a_run_without_snapshots_says_how_to_make_them(digits_dir, reference_dir, tmp_path, capsys):
    command = ["evaluate", "--follow", str(tmp_path), "--reference", reference_dir, "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert "holds no snapshots; train with --snapshot-kimg N" in capsys.readouterr().err
    assert main(["evaluate", "--reference", reference_dir, "--out", str(tmp_path / "o")]) == 2
    assert "give --model MODEL, or --follow RUN" in capsys.readouterr().err
