"""edm.fid: the number people look for, of whatever holds images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edm_ray as edm
from edm_ray.data.reader import open_reader


@pytest.fixture(scope="module")
def reference(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    return edm.reference(str(digits_dir / "train"), str(tmp_path_factory.mktemp("r") / "digits"), extractor="digits")


@pytest.fixture(scope="module")
def held_out(digits_dir: Path) -> edm.DataSet:
    return edm.open_dataset(str(digits_dir / "heldout"))


@pytest.fixture(scope="module")
def pixels(held_out) -> np.ndarray:
    """uint8 [500, 1, 8, 8]"""
    with open_reader(held_out) as reader:
        return np.array(reader.images)


@pytest.fixture(scope="module")
def weights(reference) -> str:
    """Of the extractor that the reference was measured with."""
    return str(Path(reference.uri) / "extractor-weights")


@pytest.fixture(scope="module")
def number(held_out, reference) -> float:
    return float(edm.fid(held_out, reference))


def test_it_is_a_number_with_its_error(held_out, reference, number) -> None:
    estimate = edm.fid(held_out, reference)
    assert float(estimate) == estimate.fid == number > 0 and estimate.se > 0
    assert estimate.n == held_out.rows and estimate.extractor == reference.extractor.load().identity
    assert f"FID {number:.3f} +- " in estimate.describe()


def test_an_array_a_tensor_a_data_set_and_a_folder_of_the_same_images_are_one_number(
    pixels, held_out, reference, number, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image[0]).save(folder / f"{index:05d}.png")
    given = [pixels, torch.from_numpy(pixels), held_out.uri, Path(held_out.uri), str(folder), folder]
    assert [float(edm.fid(each, reference)) for each in given] == [number] * len(given)


def test_the_reference_may_be_given_by_its_place_or_be_images(
    digits_dir: Path, held_out, reference, number, weights
) -> None:
    assert float(edm.fid(held_out, reference.uri)) == number
    assert float(edm.fid(held_out, Path(reference.uri))) == number
    of_images = edm.fid(held_out, str(digits_dir / "train"), extractor="digits", weights=weights)
    assert float(of_images) == number
    with open_reader(edm.open_dataset(str(digits_dir / "train"))) as reader:
        of_array = edm.fid(held_out, np.array(reader.images), extractor="digits", weights=weights)
    assert float(of_array) == pytest.approx(number, abs=1e-9)


def test_of_the_same_images_it_is_zero(pixels, weights) -> None:
    assert abs(float(edm.fid(pixels, pixels, extractor="digits", weights=weights))) < 1e-6


def test_the_first_so_many_are_measured(pixels, reference) -> None:
    first = edm.fid(pixels, reference, num=200)
    assert first.n == 200 and float(first) == float(edm.fid(pixels[:200], reference))


@pytest.mark.parametrize(
    ("given", "more", "says"),
    [
        (np.zeros((99, 1, 8, 8), np.uint8), {}, r"a: 99 images; an FID of fewer than 100 images says nothing"),
        (np.zeros((200, 1, 8, 8), np.uint8), {"num": 50}, r"a: 50 images; an FID of fewer than 100"),
        (np.zeros((200, 1, 8, 8), np.uint8), {"num": 300}, r"a: 200 images, 300 were asked for"),
        (np.zeros((200, 1, 8, 8)), {}, r"images=float64 \(200, 1, 8, 8\) is not allowed: uint8 \[N, C, H, H\]"),
        (np.zeros((200, 8, 8, 1), np.uint8), {}, r"images=uint8 \(200, 8, 8, 1\) is not allowed"),
        (torch.zeros(200, 1, 8, 8), {}, r"images=float32 .* is not allowed: uint8"),
        (np.zeros((200, 3, 16, 16), np.uint8), {}, r"digits"),
        ("nowhere", {}, r"nowhere"),
    ],
)
def test_what_says_nothing_or_does_not_fit_is_refused(reference, given, more: dict, says: str) -> None:
    with pytest.raises(edm.InputError, match=says):
        edm.fid(given, reference, **more)


def test_fewer_than_a_hundred_images_to_compare_with_are_refused_too(pixels, weights) -> None:
    with pytest.raises(edm.InputError, match=r"b: 99 images; an FID against fewer than 100"):
        edm.fid(pixels, pixels[:99], extractor="digits", weights=weights)
