"""`edm-ray import`: model directories and diffusers-style folders, on disk and S3, byte for byte the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from edm_ray.cli import main
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.models import load_model, open_model, save_model
from edm_ray.models.card import model_card
from edm_ray.models.weights import weights_bytes
from tests.models.interop.foreign import canary_source, snapshot, source_denoiser, training_state

FILES = ("config.json", "model.safetensors", "README.md", "manifest.json")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "network-snapshot-002500.pkl"
    path.write_bytes(snapshot("vp", source_denoiser("vp"), canary_source(tmp_path / "canary")))
    return path


def test_import_writes_a_model_directory_that_loads_and_is_the_same_again(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert main(["import", str(source), str(tmp_path / name)]) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b") and set(content(tmp_path / "a")) == set(FILES)
    loaded = load_model(str(tmp_path / "a")).module.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source_denoiser("vp").state_dict().items())
    assert not (tmp_path / "canary").exists()
    said = capsys.readouterr().out
    assert "VPPrecond" in said and "CC BY-NC-SA 4.0" in said and "edm-ray generate" in said
    # Exported from what was imported: still the same bytes.
    model = open_model(str(tmp_path / "a"))
    save_model(str(tmp_path / "c"), model.config, model.denoiser().module.state_dict(), model.about)
    assert content(tmp_path / "c") == content(tmp_path / "a")
    assert (
        str(tmp_path) not in (tmp_path / "a" / "config.json").read_text() + (tmp_path / "a" / "README.md").read_text()
    )


def test_the_card_has_front_matter_and_what_is_known(tmp_path: Path, source: Path) -> None:
    assert main(["import", str(source), str(tmp_path / "a")]) == 0
    _, front, body = (tmp_path / "a" / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert "license" not in matter and {"edm", "diffusion", "class-conditional"} <= set(matter["tags"])
    assert "# license: " in front
    for line in (
        "- dataset: cifar10-32x32",
        "- images_seen: 2500000",
        "- class_name: VPPrecond",
        "- network: ddpmpp, 3x8x8",
    ):
        assert line in body
    card = model_card(DenoiserConfig(), {"preset": "ddpmpp-32", "metrics": {"fid": 1.97}, "note": "a\n# b"})
    assert "- preset: ddpmpp-32" in card and "| fid | 1.97 |" in card and "\n# b" not in card


def test_the_weights_say_in_their_own_header_what_they_are(tmp_path: Path, source: Path) -> None:
    assert main(["import", str(source), str(tmp_path / "a")]) == 0
    with safe_open(tmp_path / "a" / "model.safetensors", framework="pt") as weights:
        metadata = weights.metadata()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert metadata["format"] == "pt" and json.loads(metadata["edm_ray.denoiser"]) == config["denoiser"]


def test_weights_are_the_same_bytes_in_another_process() -> None:
    """The library's own writer puts metadata in random order."""
    program = (
        "import torch, hashlib; from edm_ray.models.weights import weights_bytes;"
        "state = {f't{i}': torch.arange(i + 1.0) for i in range(5)};"
        "print(hashlib.sha256(weights_bytes(state, {k: k for k in 'abcdefgh'})).hexdigest())"
    )
    digests = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1
    state = {"b": torch.arange(3.0), "a": torch.arange(5, dtype=torch.int64), "c": torch.zeros(0, 3)}
    import safetensors.torch

    back = safetensors.torch.load(weights_bytes(state, {"x": "y"}))
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items()) and back.keys() == state.keys()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.pkl", "out"], "a.pkl: no such file"),
        (["{source}", "out", "--key", "net"], "has no network 'net'.*give --key ema"),
        (["{source}", "out", "--format", "onnx"], "--format onnx: give model or diffusers"),
        (["{source}", "out", "--sha256", "00"], "64 hexadecimal digits"),
        (["{source}", "taken"], "is not empty"),
        (["gs://a/b.pkl", "out"], "scheme 'gs' is not supported"),
        (["http://127.0.0.1/b.pkl", "out"], "scheme 'http' is not supported"),
        (["https://user:secret@host/b.pkl", "out"], "credentials"),
    ],
)
def test_import_refuses_with_one_line_and_writes_nothing(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], says: str,
) -> None:  # fmt: skip
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    assert main(["import", *(text.format(source=source) for text in arguments)]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said) and said.count("\n") == 1 and "secret" not in said
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "taken").iterdir())) == 1


def test_nothing_is_overwritten(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(source), str(tmp_path / "a")]) == 0
    before = content(tmp_path / "a")
    assert main(["import", str(source), str(tmp_path / "a")]) == 2
    assert "holds something already" in capsys.readouterr().err and content(tmp_path / "a") == before
    (tmp_path / "a" / "manifest.json").unlink()  # as if the first import had died
    assert main(["import", str(source), str(tmp_path / "a")]) == 0 and content(tmp_path / "a") == before


def test_import_reads_from_and_writes_to_s3(tmp_path: Path, source: Path, bucket: str) -> None:
    from edm_ray.storage import uris

    uris.write_bytes(f"{bucket}/in/{source.name}", source.read_bytes())
    assert main(["import", f"{bucket}/in/{source.name}", f"{bucket}/out"]) == 0
    assert main(["import", str(source), str(tmp_path / "a")]) == 0
    assert {name: uris.read_bytes(f"{bucket}/out/{name}") for name in FILES} == content(tmp_path / "a")
    loaded = load_model(f"{bucket}/out")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x, torch.tensor(1.0)), load_model(str(tmp_path / "a"))(x, torch.tensor(1.0)))


@pytest.mark.parametrize("case", ["vp", "ve", "edm-adm", "iddpm"])
def test_a_diffusers_folder_is_read_with_safetensors_alone(tmp_path: Path, case: str) -> None:
    network = source_denoiser(case)
    (tmp_path / "a.pt").write_bytes(training_state(case, network))
    arguments = ["import", str(tmp_path / "a.pt"), str(tmp_path / "out"), "--key", "net", "--format", "diffusers"]
    assert main(arguments) == 0
    state = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    config: dict[str, Any] = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert (config["sample_size"], config["in_channels"]) == (8, 3)
    assert None not in config["network"].values() and config["preconditioning"]["kind"] == network_kind(case)
    if case == "ve":
        assert config["network"]["resample_filter"] == [1, 3, 3, 1]
        assert config["preconditioning"]["sigma_max"] == 100.0


def network_kind(case: str) -> str:
    return case.partition("-")[0]


def test_a_model_directory_becomes_a_diffusers_folder(tmp_path: Path, source: Path) -> None:
    assert main(["import", str(source), str(tmp_path / "a")]) == 0
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "diffusers"]) == 0
    assert main(["import", str(source), str(tmp_path / "c"), "--format", "diffusers"]) == 0
    assert content(tmp_path / "b") == content(tmp_path / "c")
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "d")]) == 2
