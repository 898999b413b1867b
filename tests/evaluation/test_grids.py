"""Grids keep one class per row, and name it; the model card shows one with numbers and how they were measured."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from edm_ray.cli import main
from edm_ray.evaluation.grids import GAP_LEVEL, image_grid, rows_by_class, with_names
from edm_ray.models.directory import add_metrics, open_model


def test_rows_hold_one_class_and_are_grey_where_it_ends():
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    labels = np.array([2, 0, 2, 2, 0, 2, 2])
    rows, names = rows_by_class(images, labels, 3, ["cat", "dog", "owl"])
    assert names == ["cat", "owl", "owl"]
    assert rows.ravel().tolist() == [1, 4, GAP_LEVEL, 0, 2, 3, 5, 6, GAP_LEVEL]


def test_names_stand_left_of_their_rows():
    grid = image_grid(np.zeros((6, 1, 20, 20), np.uint8), 3, gap=4)
    sheet = np.asarray(with_names(grid, ["cat", "a name that is far too long to be shown"], 24))
    left = sheet[:, : sheet.shape[1] - grid.width].min(2)
    assert (sheet[:, -grid.width :, 0] == np.asarray(grid)).all()
    assert left[:22].min() < 128 and left[24:].min() < 128  # something is written in both rows


@pytest.fixture
def model(digits_dir, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr("edm_ray.training.grid.SHARE", 1000.0)
    train = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "run"), "--preset", "tiny"]
    assert main([*train, "--no-ray", "--snapshot-kimg", "0.24"]) == 0
    return str(tmp_path / "run" / "model")


def test_grids_of_generate_and_of_snapshots_have_a_row_a_class_whatever_the_columns(model, tmp_path):
    generate = ["generate", "--model", model, "--set", "num_steps=2", "--scale", "2", "--num", "25", "--out"]
    for columns, rows in ((10, 3), (4, 8)):
        assert main([*generate, str(tmp_path / "g.png"), "--columns", str(columns)]) == 0
        sheet = Image.open(tmp_path / "g.png")
        assert sheet.mode == "RGB" and sheet.height == rows * (16 + 6) - 6 and sheet.width > columns * (16 + 6) - 6
    [grid] = (tmp_path / "run" / "snapshots").glob("*/grid.png")
    assert Image.open(grid).mode == "RGB"


def test_the_card_has_a_picture_numbers_and_how_they_were_measured(model, digits_reference, tmp_path):
    before = open_model(model).hash
    evaluate = ["evaluate", "--model", model, "--reference", digits_reference, "--out", str(tmp_path / "e")]
    assert main([*evaluate, "--num", "100", "--workers", "0", "--set", "num_steps=2", "--card"]) == 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "![Samples of the model](samples.png)" in card
    assert "FID, n=100, against digits train (n=1297), extractor digits; heun num_steps=2, labels random, fp32" in card
    picture = Image.open(tmp_path / "run" / "model" / "samples.png")
    assert picture.text["seeds"] == "0..49" and "num_steps=2" in picture.text["settings"]
    add_metrics(open_model(model), {"mine": 1})  # the picture stays
    manifest = json.loads((tmp_path / "run" / "model" / "manifest.json").read_text())
    assert "samples.png" in manifest["files"] and open_model(model).hash == before
    assert Image.open(io.BytesIO((tmp_path / "run" / "model" / "samples.png").read_bytes())).size == picture.size
