"""The tasks of the face give the same numbers in this process and on two workers of Ray. (A sweep: test_ray.py.)"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edm_ray as edm
from edm_ray.cli import main
from edm_ray.data.reader import open_reader
from edm_ray.search.trials import TrialResult
from edm_ray.training.metrics import read_metrics
from tests.face.conftest import TINY, convnet

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
PLACES = [edm.Local(), edm.Ray(workers=2)]
SEEDS = range(150)


@pytest.fixture(scope="module")
def reference(digits_reference: str) -> str:
    return digits_reference


def test_a_data_set_has_the_same_bytes(tmp_path: Path) -> None:
    rng, digests = np.random.default_rng(0), []
    for number in range(40):
        name = tmp_path / "pictures" / str(number % 2) / f"{number:02d}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(name)
    for number, on in enumerate(PLACES):
        out = tmp_path / f"data{number}"
        dataset = edm.prepare(str(tmp_path / "pictures"), str(out), resolution=8, crop="centre", shards=4, on=on)
        assert dataset.rows == 40 and dataset.class_names == ("0", "1")
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("*.parquet"))])
    assert digests[0] == digests[1] and len(digests[0]) == 4


def test_a_reference_has_the_same_moments(digits_dir: Path, reference: str, tmp_path: Path) -> None:
    """Of the same weights; the digits extractor would be trained again to the same bits."""
    there = edm.reference(str(digits_dir / "train"), str(tmp_path / "there"), extractor="digits", on=PLACES[1])
    here = edm.reference(str(digits_dir / "train"), reference, extractor="digits")
    assert there.reference.moments.hash == here.reference.moments.hash and there.extractor == here.extractor


def test_an_evaluation_has_the_same_numbers(model: str, reference: str) -> None:
    """All metrics, with their intervals, of a sampler that draws noise."""
    sampler = edm.Heun(num_steps=4, s_churn=2.0)
    here, there = (edm.evaluate(model, reference, sampler, num=200, on=on, metrics="fid,kid,isc,prc") for on in PLACES)
    assert here.fid == there.fid and here.rows() == there.rows()
    assert {row.metric for row in here.rows()} > {"FID"}


def _stop_at_the_second_budget(result: TrialResult) -> None:
    if result.evaluation.settings.nfe == 4:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_sweep_by_budget_makes_the_same_decisions_and_is_resumed(
    model: str, reference: str, digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped and run again it ends as one that was not stopped; its rows are what `generate --nfe` takes. A second
    reference measures the same on either."""
    second = str(tmp_path / "second")
    edm.reference(str(digits_dir / "heldout"), second, extractor="digits")
    plan = edm.sweep_plan("random", num_global=1, max_chunks=1, chunk_size=100, confirm_chunks=1)
    outs = [tmp_path / on.__class__.__name__ for on in PLACES]
    with pytest.raises(KeyboardInterrupt):
        how = {"nfe": (3, 4), "plan": plan, "grid": 10, "on_trial": _stop_at_the_second_budget}
        edm.sweep(model, reference, None, str(outs[0]), **how)
    assert main(["report", str(outs[0])]) == 0
    told = capsys.readouterr().out
    assert "3 evaluations: solver" in told and "This sweep has not ended: budget 4 is still to come" in told
    here, there, again = (
        edm.sweep(model, reference, None, str(out), nfe=(4, 3), plan=plan, grid=10, on=on, second_reference=second)
        for out, on in [*zip(outs, PLACES, strict=True), (outs[0], PLACES[0])]
    )
    assert here.budgets == there.budgets == again.budgets and here.table == there.table
    opinions = [[result.second for result in found.results] for found in (here, there, again)]
    assert opinions[0] == opinions[1] == opinions[2] and None not in opinions[0]
    files = [(out / "best-samplers.yaml").read_bytes() for out in outs]
    assert files[0] == files[1] and [row.nfe for row in here.budgets] == [3, 4]
    chunks = [sorted(path.name for path in (out / "chunks" / "chunk").rglob("*.safetensors")) for out in outs]
    assert chunks[0] == chunks[1] != []
    rows = [edm.generate(model, SEEDS[:4], here.at(nfe), labels="balanced") for nfe in (3, 4)]
    command = ["generate", "--model", model, "--sampler", str(outs[0]), "--num", "4", "--format", "parquet", "--nfe"]
    for nfe, images in zip((3, 4), rows, strict=True):
        assert main([*command, str(nfe), "--out", str(tmp_path / f"images-{nfe}")]) == 0
        made = open_reader(edm.open_dataset(str(tmp_path / f"images-{nfe}"))).images
        assert np.array_equal(np.asarray(made), np.asarray(images))


def test_the_fid_of_two_sets_of_images_is_the_same(digits_dir: Path, reference: str) -> None:
    held_out = edm.open_dataset(str(digits_dir / "heldout"))
    here, there = (edm.fid(held_out, reference, on=on) for on in PLACES)
    assert here == there


@pytest.mark.slow
def test_a_network_of_one_s_own_trains_samples_and_is_measured_on_workers_whatever_threads_they_are_given(
    digits_dir: Path, reference: str, tmp_path: Path
) -> None:
    """One worker of Ray has the bits of this process, which has two threads; the module travels to it."""
    data, runs, rows, before = str(digits_dir / "train"), [], [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name, on in (("here", edm.Local()), ("there", edm.Ray(workers=1))):
            out = str(tmp_path / name)
            runs.append(edm.train(data, "tiny", out, network=convnet(), overrides=TINY, on=on))
            rows.append([(row["loss"], row["loss_by_sigma"], row["grad_norm"]) for row in read_metrics(out)])
    finally:
        torch.set_num_threads(before)
    assert rows[0] == rows[1]
    states = [model.module.state_dict() for model in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    here, there = (edm.evaluate(runs[0], reference, edm.Euler(num_steps=4), num=200, on=on) for on in PLACES)
    assert here.fid == there.fid
