"""FID references of others: read without pickle, checked, and good to measure against."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edm_ray.cli import main
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.extractors.digits import DigitsClassifier, save_digits_classifier
from edm_ray.evaluation.extractors.trained import DIM
from edm_ray.evaluation.fid import FidReference
from edm_ray.evaluation.measure import estimate_fid
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import open_reference
from edm_ray.models.interop.fid_reference import read_fid_npz


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def good(d: int = 3) -> dict[str, Any]:
    root = np.random.default_rng(0).normal(size=(d, d))
    return {"mu": np.arange(d, dtype=np.float64), "sigma": root @ root.T}


def test_mean_and_covariance_come_in_to_the_last_bit() -> None:
    arrays = good()
    mean, covariance = read_fid_npz(npz(**arrays), "x")
    assert np.array_equal(mean, arrays["mu"]) and np.array_equal(covariance, arrays["sigma"])


CASES: dict[str, tuple[bytes, str]] = {
    "no sigma": (npz(mu=np.zeros(3)), "'sigma' is missing, it holds: mu.npy"),
    "objects": (npz(**{**good(), "mu": np.array([{}, {}, {}], dtype=object)}), "an array of object"),
    "a single number": (npz(mu=np.zeros(()), sigma=np.zeros(())), r"are not \[d\] and \[d, d\]"),
    "another size": (npz(**{**good(), "mu": np.zeros(4)}), r"mu \(4,\) and sigma \(3, 3\)"),
    "whole numbers": (npz(**{**good(), "mu": np.zeros(3, np.int64)}), "an array of int64, finite floating-point"),
    "not finite": (npz(**{**good(), "mu": np.array([0, np.nan, 1])}), "mu holds numbers that are not finite"),
    "not symmetric": (npz(**{**good(), "sigma": np.triu(np.ones((3, 3)))}), "not symmetric"),
    "negative": (npz(**{**good(), "sigma": -np.eye(3)}), "diagonal of 0 or more"),
    "column by column": (npz(**{**good(), "sigma": np.asfortranarray(np.triu(np.ones((3, 3))))}), "not symmetric"),
    "no zip": (b"hello", "not an .npz file"),
    "truncated": (npz(**good())[:-30], "not an .npz file"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_no_reference_is_refused(name: str) -> None:
    content, says = CASES[name]
    with pytest.raises(InputError, match=f"where: .*{says}"):
        read_fid_npz(content, "where")


def test_a_bomb_and_a_lying_header_are_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", b"\0" * 300_000_000)
    with pytest.raises(InputError, match="more than 268,435,456 bytes"):
        read_fid_npz(stream.getvalue(), "x")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
    with pytest.raises(InputError, match=r"said to have shape \(1048576, 1048576\), 0 bytes"):
        read_fid_npz(stream.getvalue(), "x")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_digits_classifier(DigitsClassifier().state_dict(), tmp_path / "digits.safetensors")
    return tmp_path / "digits.safetensors"


def test_an_imported_reference_gives_the_fid_of_its_mean_and_covariance(tmp_path: Path, weights: Path) -> None:
    rng = np.random.default_rng(1)
    features = rng.integers(-(2**12), 2**12, size=(400, DIM), dtype=np.int64).astype(np.int32)
    probe = Moments.of(features[:200], "probe", 14)
    (tmp_path / "digits-8x8.npz").write_bytes(npz(mu=probe.mean, sigma=probe.covariance))
    arguments = ["import", str(tmp_path / "digits-8x8.npz"), str(tmp_path / "ref")]
    assert main([*arguments, "--extractor", "digits", "--weights", str(weights)]) == 0
    reference, spec = open_reference(str(tmp_path / "ref"))
    assert reference.describe() == "digits-8x8 (n not published), extractor digits"
    estimate = estimate_fid(features[200:], np.arange(200), reference, 4)
    exact = FidReference(probe).distance(Moments.of(features[200:], "probe", 14))
    assert estimate.fid == pytest.approx(exact, rel=1e-12)
    assert estimate.reference == reference.moments.hash and spec.load().identity == estimate.extractor
    with pytest.raises(InputError, match="cannot be compared"):
        FidReference(reference.moments).distance(Moments.of(features, "other", 14))


def test_an_imported_reference_needs_fitting_features_and_weights(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDM_RAY_WEIGHTS_MIRROR", "http://127.0.0.1:9")  # nobody is there
    (tmp_path / "a.npz").write_bytes(npz(**good()))
    arguments = ["import", str(tmp_path / "a.npz"), str(tmp_path / "ref")]
    assert main([*arguments, "--extractor", "digits", "--weights", str(weights)]) == 2
    assert f"3 features, extractor digits has {DIM}" in capsys.readouterr().err
    assert main(arguments) == 2 and "weights could not be downloaded" in capsys.readouterr().err
    assert not (tmp_path / "ref").exists()


def test_a_changed_reference_is_noticed(tmp_path: Path, weights: Path) -> None:
    arrays = {"mu": np.zeros(DIM), "sigma": np.eye(DIM)}
    (tmp_path / "a.npz").write_bytes(npz(**arrays))
    arguments = ["import", str(tmp_path / "a.npz"), str(tmp_path / "ref"), "--extractor", "digits"]
    assert main([*arguments, "--weights", str(weights)]) == 0
    path = tmp_path / "ref" / "moments.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match=r"moments\.safetensors"):
        open_reference(str(tmp_path / "ref"))
