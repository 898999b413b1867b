"""Files that people give to the wrong command, or of other projects: each is named, with what to do."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch

from edm_ray.cli import main
from edm_ray.errors import InputError
from edm_ray.models.card import model_card
from edm_ray.models.interop import import_pickle
from tests.models.interop.foreign import Persistent, foreign_modules, snapshot, source_denoiser
from tests.storage.test_sealed import CONFIG


def refused(tmp_path, content, says, name="a.pkl"):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        import_pickle(str(tmp_path / name))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_network_of_edm2_is_named_as_such(tmp_path):
    with foreign_modules():
        state = {"_init_args": (), "_init_kwargs": {"img_resolution": 64, "img_channels": 3, "label_dim": 1000}}
        content = pickle.dumps({"ema": Persistent("Precond", state, "import torch")}, 4)
    refused(tmp_path, content, r"is a network of EDM2 \(class Precond.*not built here")


@pytest.mark.parametrize("value", [{"a": torch.zeros(2)}, torch.zeros(3)])
def test_an_old_torch_file_says_how_it_is_saved_again(tmp_path, value):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    refused(tmp_path, buffer.getvalue(), r"torch.save before torch 1.6; .*load it with torch and save it again")


def test_a_state_dict_alone_says_what_is_missing(tmp_path):
    buffer = io.BytesIO()
    torch.save({"model.weight": torch.zeros(2)}, buffer)
    refused(tmp_path, buffer.getvalue(), "holds tensors alone .a state dict.*edm.save_model", name="a.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_weights_of_another_type_say_how_they_are_saved_again(tmp_path, dtype):
    kind = str(dtype).removeprefix("torch.")
    content = snapshot("vp", source_denoiser("vp").to(dtype))
    refused(tmp_path, content, f"found {kind}.*it has {kind} weights: save it again as float32")


@pytest.mark.parametrize(
    "content", [{"mu": np.zeros(4), "sigma": np.eye(4)}, {"fid": {"mu": np.zeros(4), "sigma": np.eye(4)}}]
)
def test_statistics_of_fid_are_no_network(tmp_path, content):
    refused(tmp_path, pickle.dumps(content, 4), "if it is a reference of FID, save its two as .npz")


def test_statistics_of_fid_given_to_another_command_say_which_one_takes_them(tmp_path, capsys):
    path = str(tmp_path / "ref.npz")
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4))
    asked = {
        "prepare": ["prepare", path, str(tmp_path / "out")],
        "generate": ["generate", "--model", path, "--out", str(tmp_path / "x.png")],
        "ema": ["ema", "--model", path],
    }
    for command in ("prepare", "generate"):
        assert main(asked[command]) == 2
        assert f"edm-ray import {path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.safetensors"])
def test_a_file_given_as_a_model_says_import(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"x")
    assert main(["generate", "--model", str(tmp_path / name), "--out", str(tmp_path / "x.png")]) == 2
    assert f"make one of a .pkl or .pt: edm-ray import {tmp_path / name}" in capsys.readouterr().err


def test_names_of_classes_are_no_markup_in_the_model_card():
    names = [
        "<script>alert(1)</script>",
        "a|b",
        "`x`",
        "[x](javascript:alert(1))",
        "![y](http://z)",
        "# head\n# two",
        "---",
    ]
    card = model_card(CONFIG, {"class_names": names, "dataset": "<img src=x>", "metrics": {"<b>": "1|2"}})
    assert "<script" not in card and "<img" not in card and "<b>" not in card
    assert "](javascript" not in card and "](http" not in card and "\n# two" not in card
    assert card.count("\n---") == 1
    (row,) = [line for line in card.splitlines() if line.startswith("| &lt;b&gt;")]
    assert row == "| &lt;b&gt; | 1&#124;2 |"
