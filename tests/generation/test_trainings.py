"""`edm-ray evaluate --model A B`: each as if alone, and how far their FIDs spread."""

from __future__ import annotations

import json

import pytest

import edm_ray as edm
from edm_ray.cli import main
from tests.formats import without_format


@pytest.fixture(scope="module")
def other_model(digits_dir, tmp_path_factory) -> str:
    """Of another seed."""
    run = str(tmp_path_factory.mktemp("other") / "run")
    data = ["--data", str(digits_dir / "train"), "--out", run, "--preset", "tiny", "--workers", "0"]
    assert main(["train", *data, "--set", "seed=1"]) == 0
    return f"{run}/model"


def test_each_model_is_measured_as_if_alone_and_their_spread_is_told(
    capsys, tiny_model, other_model, digits_reference, tmp_path
):
    command = ["--reference", digits_reference, "--num", "100", "--workers", "0", "--set", "num_steps=2"]
    assert main(["evaluate", "--model", tiny_model, other_model, "--out", str(tmp_path / "e"), *command]) == 0
    said = capsys.readouterr().out
    assert "2 trainings, n=100, against " in said and "mean over trainings" in said
    assert "sampling alone gives" in said and "trainings.json" in said
    content = json.loads((tmp_path / "e" / "trainings.json").read_text())
    assert without_format(tmp_path / "e") == []
    sampler = edm.Heun(num_steps=2)
    for model, entry in zip((tiny_model, other_model), content["models"], strict=True):
        alone = edm.evaluate(model, digits_reference, sampler, num=100)
        assert entry["model"] == model and entry["samples"] == json.loads(json.dumps(alone.fid.to_dict()))
    (spread,) = content["spreads"]
    fids = [entry["samples"]["fid"] for entry in content["models"]]
    assert spread["fids"] == fids and spread["mean"] == pytest.approx(sum(fids) / 2)
    assert spread["between"] == pytest.approx(abs(fids[0] - fids[1]) / 2**0.5)
    # Again: every chunk is there. From Python the same.
    made = len(list((tmp_path / "e" / "chunks").rglob("*.safetensors")))
    again = edm.evaluate_trainings(
        [tiny_model, other_model], digits_reference, sampler, num=100, out=str(tmp_path / "e")
    )
    assert json.loads(json.dumps(again.to_dict())) == content and again.describe().startswith("FID ")
    assert len(list((tmp_path / "e" / "chunks").rglob("*.safetensors"))) == made
    models = ["evaluate", "--model", tiny_model, other_model, "--out", str(tmp_path / "e"), *command]
    assert main([*models, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] == 200


def test_a_plan_counts_the_images_of_all_models(capsys, tiny_model, other_model, digits_reference, tmp_path):
    command = ["--reference", digits_reference, "--num", "100", "--workers", "0", "--set", "num_steps=2", "--json"]
    models = ["--model", tiny_model, other_model, "--out", str(tmp_path / "e"), "--dry-run"]
    assert main(["evaluate", *models, *command]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [([], "the same model is given twice"), (["--protocol", "paper"], "--protocol paper is of one model")],
)
def test_what_has_no_spread_is_refused(capsys, tiny_model, digits_reference, tmp_path, options, says):
    models = ["--model", tiny_model, tiny_model, "--reference", digits_reference, "--out", str(tmp_path / "e")]
    assert main(["evaluate", *models, "--num", "100", "--workers", "0", *options]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "e").exists()
