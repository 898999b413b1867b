"""`edm-ray evaluate` measures what its parts measure; what it cannot measure is refused before Ray starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_ray.cli import main
from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.measure import measure, plan_measurement
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.generate import generate
from edm_ray.models import load_model, open_model
from tests.formats import without_format


@pytest.fixture(scope="module")
def reference(digits_dir, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("reference") / "r")
    data = ["--data", str(digits_dir / "train"), "--out", out, "--extractor", "digits", "--features", "150"]
    assert main(["reference", *data]) == 0
    return out


@pytest.mark.slow
def test_the_papers_protocol_measures_three_sets_of_seeds_from_zero(
    capsys, tiny_model, reference, digits_dir, tmp_path
):
    command = ["evaluate", "--model", tiny_model, "--reference", reference, "--out", str(tmp_path / "e")]
    command += ["--num", "100", "--workers", "0"]
    command += ["--protocol", "paper", "--metrics", "fid,kid,isc,prc", "--set", "num_steps=3"]
    before, model = open_model(tiny_model), tmp_path / "model"
    shutil.copytree(tiny_model, model)
    assert main([*command, "--real", str(digits_dir / "heldout")]) == 0
    said = capsys.readouterr().out
    assert "paper protocol" in said and "real images of digits heldout" in said
    content = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert [entry["first_seed"] for entry in content["metrics"]] == [0, 100, 200]
    known, spec = open_reference(reference)
    plan = plan_measurement(("fid", "kid", "isc", "prc"), reference, known, spec)
    for first, entry in ((0, content["metrics"][0]), (200, content["metrics"][2])):
        seeds = torch.arange(first, first + 100)
        images = generate(load_model(tiny_model), seeds, sampler(num_steps=3))
        expected = measure(spec.load().extract(images), seeds.numpy(), plan).to_dict()
        assert {name: entry[name] for name in expected} == json.loads(json.dumps(expected))
    fids = [entry["fid"]["fid"] for entry in content["metrics"]]
    row = content["protocol"][0]
    assert row["metric"] == "FID" and row["best"] == min(fids) and row["mean"] == pytest.approx(np.mean(fids))
    assert row["n"] == 100 and row["n_reference"] == known.images
    assert without_format(tmp_path / "e") == [] == without_format(Path(reference))
    # Chunks of another precision are others; those of the same are found again.
    count = len(list((tmp_path / "e" / "chunks" / "chunk").rglob("*.safetensors")))
    assert count == 3
    command[2] = str(model)
    assert main([*command, "--precision", "bf16", "--card"]) == 0
    assert main([*command, "--card"]) == 0
    card, after = (model / "README.md").read_text(), open_model(str(model))
    assert f"| FID, 3 sets of n=100, against {known.describe()}; " in card and "labels random, bf16 | " in card
    best = f"{min(fids):.3f} the best, as in the paper; mean {np.mean(fids):.3f} (95 % interval "
    assert f"labels random, fp32 | {best}" in card
    assert (after.hash, after.weights) == (before.hash, before.weights)
    assert len(after.about["metrics"]) == 2 * 7 + len(before.about["metrics"])
    assert len(list((tmp_path / "e" / "chunks" / "chunk").rglob("*.safetensors"))) == 6
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["metrics"] == content["metrics"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metrics", "fid,kidd"], "did you mean 'kid'"),
        (["--num", "99"], "give 100 or more"),
        (["--precision", "fp8"], "give fp32, bf16, fp16"),
        (["--real", "DATA"], "1000000 are needed"),
        (["--labels", "10"], "a class in 0..9"),
        (["--device", "tpu"], "give cpu or cuda"),
        (["--reference", "cifar10-32x32.npz"], "give --reference OUT"),
        (["--reference", "BARE", "--metrics", "prc"], "--metrics prc: needs features of real images"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    capsys, monkeypatch, tiny_model, reference, digits_dir, tmp_path, arguments, says
):
    monkeypatch.chdir(tmp_path)
    bare = str(tmp_path / "bare")
    if "BARE" in arguments:
        weights = ["--weights", f"{reference}/extractor-weights", "--features", "0"]
        data = ["--data", str(digits_dir / "train"), "--out", bare, "--extractor", "digits"]
        assert main(["reference", *data, *weights]) == 0
    places = {"BARE": bare, "DATA": str(digits_dir / "heldout")}
    given = [places.get(word, word) for word in arguments]
    base = ["evaluate", "--model", tiny_model, "--out", str(tmp_path / "e")]
    base += [] if "--reference" in given else ["--reference", reference]
    base += [] if "--num" in given else ["--num", "1000000"]
    assert main([*base, *given]) == 2
    text = capsys.readouterr().err
    assert says in text and text.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_a_dry_run_names_what_would_be_measured(capsys, tiny_model, reference, tmp_path):
    command = ["evaluate", "--model", tiny_model, "--reference", reference, "--out", str(tmp_path / "e")]
    command += ["--num", "200"]
    assert main([*command, "--protocol", "paper", "--metrics", "isc", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "3 x 200 images" in text and "measure fid, isc against" in text and not (tmp_path / "e").exists()
