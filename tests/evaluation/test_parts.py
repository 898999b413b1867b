"""A reference measured in parts has the bits of one measured at once, by whoever and in whatever order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_ray.cli import main
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.errors import IntegrityError
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.parts import MOST_PARTS, Part, PartMeter, parts_of
from edm_ray.evaluation.reference import open_reference
from edm_ray.evaluation.reference_features import chosen_rows, open_kept


@pytest.fixture(scope="module")
def reference(digits_dir, tmp_path_factory):
    """Made by the command, in this process."""
    out = tmp_path_factory.mktemp("parts") / "reference"
    command = ["reference", "--data", str(digits_dir / "train"), "--extractor", "digits", "--features", "200"]
    assert main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture
def meter(digits_dir, reference, tmp_path):
    dataset = open_dataset(str(digits_dir / "train"))
    extractor = load_extractor("digits", reference / "extractor-weights")
    return PartMeter(dataset, extractor, chosen_rows(dataset.rows, 200), str(tmp_path / "store"), "cpu")


@pytest.mark.parametrize("rows", [1, 499, 500, 501, 31_999, 32_000, 32_001, 1_281_167])
def test_parts_cover_every_row_once_and_are_never_many(rows):
    parts = parts_of(rows)
    assert parts[0].first == 0 and parts[-1].stop == rows and len(parts) <= MOST_PARTS
    assert all(a.stop == b.first for a, b in itertools.pairwise(parts))


def test_parts_in_any_order_give_the_moments_of_all_rows_at_once(meter, reference):
    with open_reader(meter.dataset) as pixels:
        features = meter.extractor.extract(torch.from_numpy(pixels.images))
    at_once = Moments.of(features, meter.extractor.identity, meter.extractor.scale_bits)
    parts = [Part(0, 137), Part(137, 138), Part(138, 1000), Part(1000, meter.dataset.rows)]
    for part in parts[::-1]:
        meter.finish(part)
    moments, kept = meter.collect(parts)
    assert moments.hash == at_once.hash == open_reference(str(reference))[0].moments.hash
    assert np.array_equal(kept.features, features[meter.chosen])
    assert np.array_equal(kept.features, open_kept(str(reference), "kid").features)
    assert not (reference / "parts").exists(), "parts are deleted when the reference is there"


def test_a_finished_part_is_not_measured_again_and_a_damaged_one_is(meter, monkeypatch):
    part, measured = Part(0, 300), []
    extract = meter.extractor.extract
    monkeypatch.setattr(meter.extractor, "extract", lambda images: measured.append(1) or extract(images))
    meter.finish(part)
    meter.finish(part)
    assert len(measured) == 1
    path = next(Path(meter.store).iterdir())
    whole = path.read_bytes()
    for broken in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(IntegrityError, match="delete it and run again"):
            meter.collect([part])
        meter.finish(part)
        assert path.read_bytes() and meter.collect([part])[0].n == 300
    assert len(measured) == 3


def test_a_store_finds_what_was_made_before_and_keeps_others_apart(digits_dir, tmp_path, capsys):
    command = ["reference", "--extractor", "digits", "--store", str(tmp_path), "--data"]
    assert main([*command, str(digits_dir / "train")]) == 0
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main([*command, str(digits_dir / "train")]) == 0
    assert "is there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == first
    assert main([*command, str(digits_dir / "heldout")]) == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out DIRECTORY for this reference, or --store"),
        (["--out", "a", "--store", "b"], "--out DIRECTORY for this reference, or --store"),
        (["--out", "a", "--workers", "-1"], "--workers -1: give 1 or more"),
    ],
)
def test_wrong_flags_are_named(digits_dir, capsys, arguments, message):
    assert main(["reference", "--data", str(digits_dir / "train"), "--extractor", "digits", *arguments]) == 2
    assert message in capsys.readouterr().err
