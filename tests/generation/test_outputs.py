"""Zip, folder and data set of samples: what others read there, and nothing half-made."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import resource
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from edm_ray.cli import main
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.generation.outputs import ParquetSet, PngFolder, PngZip, Writing
from edm_ray.storage import uris
from tests.storage.proxies import s3_server

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
SEEDS, LABELS = np.arange(100, 112), np.arange(12) % 4


def _in_parts(output, images=IMAGES, sizes=(5, 7)):
    with Writing(output) as out:
        first = 0
        for size in sizes:
            part = slice(first, first + size)
            out.add(SEEDS[part], LABELS[part], images[part])
            first += size


def test_a_zip_is_laid_out_as_nvlabs_do_and_holds_the_images(tmp_path):
    path = tmp_path / "x.zip"
    _in_parts(PngZip(str(path), True, {"model": "m"}))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names[0] == "00000/img00000100.png" and names[-1] == "dataset.json"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        table = json.loads(archive.read("dataset.json"))["labels"]
        assert table == [[name, int(label)] for name, label in zip(names, LABELS)]
        for name, image in zip(names, IMAGES):
            with archive.open(name) as stream:
                assert np.array_equal(np.asarray(Image.open(stream)).transpose(2, 0, 1), image)
        assert json.loads(archive.comment) == {"model": "m"}


def test_equal_images_give_equal_bytes_however_they_come_in_parts(tmp_path):
    contents = []
    for name, sizes in (("a", (5, 7)), ("b", (1, 10, 1))):
        _in_parts(PngZip(str(tmp_path / f"{name}.zip"), True, {}), sizes=sizes)
        _in_parts(ParquetSet(str(tmp_path / name), 12, "wxyz", {}, per_shard=5), sizes=sizes)
        shards = sorted((tmp_path / name).glob("*.parquet"))
        contents.append([(tmp_path / f"{name}.zip").read_bytes(), *[path.read_bytes() for path in shards]])
    assert len(contents[0]) == 4 and contents[0] == contents[1]


def test_a_zip_without_classes_says_so(tmp_path):
    _in_parts(PngZip(str(tmp_path / "x.zip"), False, {}))
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}


def test_a_zip_can_be_prepared_into_a_data_set_of_the_same_images(tmp_path):
    _in_parts(PngZip(str(tmp_path / "x.zip"), True, {}))
    assert main(["prepare", str(tmp_path / "x.zip"), str(tmp_path / "d")]) == 0
    with open_reader(open_dataset(str(tmp_path / "d"))) as pixels:
        assert np.array_equal(pixels.images, IMAGES) and np.array_equal(pixels.labels, LABELS)


def test_a_parquet_output_is_a_data_set(tmp_path):
    _in_parts(ParquetSet(str(tmp_path / "d"), 12, "wxyz", {"model": "m"}, per_shard=5))
    dataset = open_dataset(str(tmp_path / "d"))
    assert dataset.rows == 12 and dataset.class_names == tuple("wxyz") and len(dataset.shards) == 3
    with open_reader(dataset) as pixels:
        assert np.array_equal(pixels.images, IMAGES) and np.array_equal(pixels.labels, LABELS)


def test_a_png_of_a_folder_says_what_made_it(tmp_path):
    _in_parts(PngFolder(str(tmp_path / "f"), {"settings": "s"}))
    image = Image.open(tmp_path / "f" / "seed00000107.png")
    assert image.text == {"settings": "s", "seed": "107"}
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1), IMAGES[7])


def test_what_fails_on_the_way_leaves_no_zip_and_an_older_one_as_it_was(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"older")
    for output in (PngZip(str(path), True, {}), ParquetSet(str(tmp_path / "d"), 12, "wxyz", {}, per_shard=5)):
        with pytest.raises(RuntimeError), Writing(output) as out:
            out.add(SEEDS[:6], LABELS[:6], IMAGES[:6])
            raise RuntimeError
    assert path.read_bytes() == b"older" and list(tmp_path.glob(".*")) == []
    assert not (tmp_path / "d" / "manifest.json").exists()
    _in_parts(ParquetSet(str(tmp_path / "d"), 12, "wxyz", {}, per_shard=5))  # written over
    assert open_dataset(str(tmp_path / "d")).rows == 12


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["zip", "folder", "data set"])
def test_what_the_system_does_not_write_is_named_and_its_first_half_removed(tmp_path, kind):
    make = {"zip": lambda path: PngZip(path, True, {}), "folder": lambda path: PngFolder(path, {})}
    make["data set"] = lambda path: ParquetSet(path, 12, "wxyz", {})
    output = make[kind](str(tmp_path / "x"))
    with pytest.raises(OSError, match=r"File too large") as caught, files_of_at_most(64):
        _in_parts(output)
    assert caught.value.errno == errno.EFBIG and str(caught.value.filename).startswith(str(tmp_path / "x"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_all_outputs_of_the_command_hold_the_same_images(tiny_model, tmp_path):
    base = ["generate", "--model", tiny_model, "--num", "7", "--seed", "8", "--set", "num_steps=3", "--out"]
    assert main([*base, str(tmp_path / "f")]) == 0
    assert main([*base, str(tmp_path / "x.zip")]) == 0
    assert main([*base, str(tmp_path / "d"), "--format", "parquet"]) == 0
    with open_reader(open_dataset(str(tmp_path / "d"))) as pixels, zipfile.ZipFile(tmp_path / "x.zip") as archive:
        table = json.loads(archive.read("dataset.json"))["labels"]
        assert pixels.labels.tolist() == [label for _, label in table] == [0, 0, 1, 1, 1, 1, 1]
        assert pixels.dataset.class_names == tuple("0123456789")
        for seed, image in zip(range(8, 15), pixels.images):
            with archive.open(f"00000/img{seed:08d}.png") as stream:
                assert np.array_equal(np.asarray(Image.open(stream)), image[0])
            assert np.array_equal(np.asarray(Image.open(tmp_path / "f" / f"seed{seed:08d}.png")), image[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "x.zip", "--format", "parquet"], "--format parquet makes a directory"),
        (["--out", "x", "--interpolate", "1:2"], "give a .png file"),
        (["--out", "x.png", "--interpolate", "1-2"], "give two seeds, e.g. 3:17"),
        (["--out", "x.png", "--interpolate", "1:2", "--set", "s_churn=4"], "give a deterministic sampler"),
        (["--out", "x.png", "--interpolate", "1:2", "--invert", "d"], "one picture at a time"),
        (["--out", "x.png", "--reference", "r"], "give --neighbours DATASET too"),
        (["--out", "x.png", "--precision", "fp8"], "give fp32, bf16, fp16"),
        (["--out", "x.png", "--invert", "nowhere"], "no data set"),
        (["--out", "x.png", "--invert", "d", "--workers", "2"], "drawn by this process"),
        (["--out", "x.png", "--workers", "2:1"], "MOST not below LEAST"),
        (["--out", "gs://b/x.png"], "scheme 'gs' is not supported"),
        (["--out", "x.png", "--device", "tpu"], "--device tpu: give cpu or cuda"),
        (["--out", "x.png", "--labels", "10"], "a class in 0..9"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(capsys, monkeypatch, tiny_model, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--model", tiny_model, *arguments]) == 2
    text = capsys.readouterr().err
    assert says in text and text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_of_another_shape_is_refused(capsys, tiny_model, tmp_path):
    _in_parts(ParquetSet(str(tmp_path / "d"), 12, "wxyz", {}))
    out = ["--out", str(tmp_path / "x.png")]
    for flag in ("--invert", "--neighbours"):
        assert main(["generate", "--model", tiny_model, *out, flag, str(tmp_path / "d")]) == 2
        assert "images of 8x8x3, the model makes 8x8x1" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["generate", "reference"])
def test_a_missing_gpu_is_reported_in_one_line(capsys, tiny_model, digits_dir, tmp_path, command):
    what = ["--model", tiny_model] if command == "generate" else ["--data", str(digits_dir / "train")]
    assert main([command, *what, "--out", str(tmp_path / "x"), "--device", "cuda"]) == 2
    text = capsys.readouterr().err
    assert "no GPU; give --device cpu" in text and text.count("\n") == 1


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3_server("samples"):
        yield "s3://samples"


def test_every_output_goes_to_s3_with_the_bytes_it_has_on_disk(bucket, monkeypatch, tiny_model, tmp_path):
    """Once they went to a local folder named s3:, and the command said that all was well."""
    monkeypatch.chdir(tmp_path)
    base = ["generate", "--model", tiny_model, "--num", "4", "--set", "num_steps=2"]
    outs = {"grid.png": [], "x.zip": [], "folder": [], "set": ["--format", "parquet"]}
    for name, more in outs.items():
        for place in (bucket, str(tmp_path / "here")):
            assert main([*base, "--out", f"{place}/{name}", *more]) == 0
    for name in ("grid.png", "x.zip", "folder/seed00000003.png", "set/samples-00000-of-00001.parquet"):
        assert uris.read_bytes(f"{bucket}/{name}") == (tmp_path / "here" / name).read_bytes(), name
    assert open_dataset(f"{bucket}/set").rows == 4
    with zipfile.ZipFile(io.BytesIO(uris.read_bytes(f"{bucket}/x.zip"))) as archive:
        assert len(archive.namelist()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
