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
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.parts import MOST_PARTS, ReferenceParts, ranges_of
from edm_ray.evaluation.reference import open_reference
from edm_ray.evaluation.reference_features import chosen_rows, open_reference_features
from edm_ray.execution.executor import make_all
from edm_ray.execution.local import Local
from edm_ray.storage.artifacts import path_of


@pytest.fixture(scope="module")
def reference(digits_dir, tmp_path_factory):
    """Made by the command, in this process."""
    out = tmp_path_factory.mktemp("parts") / "reference"
    command = ["reference", "--data", str(digits_dir / "train"), "--extractor", "digits", "--features", "200"]
    assert main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture
def recipe(digits_dir, reference, tmp_path):
    dataset = open_dataset(str(digits_dir / "train"))
    spec, store = open_reference(str(reference))[1], str(tmp_path / "store")
    return ReferenceParts(dataset=dataset, extractor=spec, chosen=chosen_rows(dataset.rows, 200), store=store)


def _make(recipe, ranges):
    parts = recipe.parts(ranges, recipe.extractor.load().identity, "cpu")
    with Local().open(recipe) as (measuring,):
        make_all(measuring, [(part,) for part in parts])
    return parts


@pytest.mark.parametrize("rows", [1, 499, 500, 501, 31_999, 32_000, 32_001, 1_281_167])
def test_parts_cover_every_row_once_and_are_never_many(rows):
    ranges = ranges_of(rows)
    assert ranges[0][0] == 0 and ranges[-1][1] == rows and len(ranges) <= MOST_PARTS
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


def test_parts_in_any_order_give_the_moments_of_all_rows_at_once(recipe, reference):
    extractor = recipe.extractor.load()
    with open_reader(recipe.dataset) as pixels:
        features = extractor.extract(torch.from_numpy(pixels.images))
    at_once = Moments.of(features, extractor.identity, extractor.scale_bits)
    parts = _make(recipe, [(1000, recipe.dataset.rows), (138, 1000), (137, 138), (0, 137)])[::-1]
    moments, rows = recipe.collect(parts, extractor.scale_bits)
    assert moments.hash == at_once.hash == open_reference(str(reference))[0].moments.hash
    assert np.array_equal(rows.features, features[recipe.chosen])
    assert np.array_equal(rows.features, open_reference_features(str(reference), "kid").features)
    assert not (reference / "parts").exists(), "parts are deleted when the reference is there"


def test_a_finished_part_is_not_measured_again_and_a_damaged_one_is(recipe, monkeypatch):
    measured, extract = [], Extractor.extract
    monkeypatch.setattr(Extractor, "extract", lambda self, images: measured.append(1) or extract(self, images))
    _make(recipe, [(0, 300)])
    [part] = _make(recipe, [(0, 300)])
    assert len(measured) == 1
    path = Path(path_of(recipe.store, part))
    whole = path.read_bytes()
    for broken in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(IntegrityError, match="delete it and run again"):
            recipe.collect([part], 14)
        _make(recipe, [(0, 300)])
        assert path.read_bytes() and recipe.collect([part], 14)[0].n == 300
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
