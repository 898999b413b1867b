"""Published weights: found on this machine or fetched, by the published hash; else what to do is said in a line."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edm_ray.cli import main
from edm_ray.errors import InputError
from edm_ray.evaluation.extractors import published_weights
from edm_ray.evaluation.extractors.published_weights import PUBLISHED, find_weights, weights_file
from edm_ray.storage import download, web
from tests.storage.loopback import FileServer, serving

STAND_IN = bytes(range(256)) * 40


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A small file in Inception's place, and an empty machine."""
    for name in (published_weights.VARIABLE, published_weights.MIRROR):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(web, "SCHEMES", ("https", "http"))
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    small = dataclasses.replace(
        PUBLISHED["inception"],
        address="http://127.0.0.1:1/weights-inception.pth",
        sha256=hashlib.sha256(STAND_IN).hexdigest(),
        size=len(STAND_IN),
    )
    monkeypatch.setitem(PUBLISHED, "inception", small)
    return small


@pytest.fixture
def server(inception, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving(STAND_IN) as running:
        monkeypatch.setenv(published_weights.MIRROR, running.address)
        yield running


def put(path: Path, content: bytes = STAND_IN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_file_is_the_one_that_torch_fidelity_names():
    from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    published = PUBLISHED["inception"]
    assert published.address == URL_INCEPTION_V3
    named = re.search(r"-([0-9a-f]{8})\.pth$", published.file)
    assert named is not None and published.sha256.startswith(named[1]), "torch.hub's convention"


def test_it_is_looked_for_in_the_variable_the_cache_and_the_cache_of_torch_hub(inception, tmp_path, monkeypatch):
    assert find_weights(inception) is None
    other_name = put(tmp_path / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth")
    assert find_weights(inception) == other_name
    cached = put(tmp_path / "cache" / "edm_ray" / "weights" / inception.file)
    assert find_weights(inception) == cached
    folder = put(tmp_path / "mine" / inception.file)
    monkeypatch.setenv(published_weights.VARIABLE, str(tmp_path / "mine"))
    assert find_weights(inception) == folder
    renamed = put(tmp_path / "elsewhere" / "any-name")
    monkeypatch.setenv(published_weights.VARIABLE, str(renamed))
    assert find_weights(inception) == renamed
    assert weights_file("inception", None, tmp_path) == renamed


def test_a_file_with_another_hash_does_not_count(inception, tmp_path, monkeypatch):
    put(tmp_path / "hub" / "checkpoints" / inception.file, STAND_IN[::-1])
    put(tmp_path / "cache" / "edm_ray" / "weights" / inception.file, STAND_IN[:-1])
    assert find_weights(inception) is None
    monkeypatch.setenv(published_weights.VARIABLE, str(put(tmp_path / "wrong.pth", b"x")))
    with pytest.raises(InputError, match=r"EDM_RAY_WEIGHTS=.*wrong.pth: its sha256 is that of no published file"):
        find_weights(inception)
    monkeypatch.setenv(published_weights.VARIABLE, str(tmp_path / "typo.pth"))
    with pytest.raises(InputError, match=r"typo\.pth: no such file"):
        find_weights(inception)


def test_weights_lists_what_there_is_and_fetches_what_is_named(server, inception, tmp_path, capsys):
    assert main(["weights"]) == 0
    listed = capsys.readouterr().out
    for published in PUBLISHED.values():
        assert published.sha256 in listed and published.licence in listed and published.file in listed
    assert "no; download it: edm-ray weights inception" in listed
    assert main(["weights", "inception"]) == 0
    path = tmp_path / "cache" / "edm_ray" / "weights" / inception.file
    assert path.read_bytes() == STAND_IN and str(path) in capsys.readouterr().out
    assert main(["weights", "inception"]) == 0 and len(server.asked) == 1
    assert main(["weights", "inceptoin"]) == 2
    assert "did you mean 'inception'" in capsys.readouterr().err


def test_weights_go_to_the_folder_that_the_variable_names(server, inception, tmp_path, monkeypatch):
    monkeypatch.setenv(published_weights.VARIABLE, str(tmp_path / "mine"))
    assert main(["weights", "inception"]) == 0
    assert (tmp_path / "mine" / inception.file).read_bytes() == STAND_IN


@pytest.mark.parametrize("fault", ["404", "portal", "other", "no network"])
def test_a_reference_that_cannot_have_its_weights_offers_three_ways_in_one_line(
    fault, server, inception, tmp_path, digits_dir, capsys, monkeypatch
):
    if fault == "no network":
        monkeypatch.delenv(published_weights.MIRROR)
    else:
        server.faults = [fault]
    out = tmp_path / "reference"
    assert main(["reference", "--data", str(digits_dir / "train"), "--out", str(out)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    for offer in (f"curl -fLO {inception.address}", inception.sha256, "--weights FILE", "--extractor self"):
        assert offer in line
    assert str(tmp_path / "cache" / "edm_ray" / "weights" / inception.file) in line
    assert not out.exists() or not list(out.glob("manifest*"))


def test_a_dry_run_says_what_would_be_downloaded_and_downloads_nothing(server, inception, tmp_path, digits_dir, capsys):
    command = ["reference", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "r"), "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"to download: {inception.file}" in said and server.address in said and not server.asked


def test_a_reference_is_made_with_weights_that_were_downloaded(
    server, inception, inception_weights, tmp_path, digits_dir, monkeypatch, capsys
):
    """With random weights in the official format: all but the address and the hash is as with the real file."""
    server.content = content = inception_weights.read_bytes()
    whole = dataclasses.replace(inception, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    monkeypatch.setitem(PUBLISHED, "inception", whole)
    pictures = tmp_path / "data"
    from edm_ray.tasks.models import write_dataset

    write_dataset(torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8).numpy(), None, str(pictures), name="t")
    assert main(["reference", "--data", str(pictures), "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().out
    assert "MiB of the weights" in said and "extractor inception" in said
    assert (tmp_path / "r" / "extractor-weights").read_bytes() == content
