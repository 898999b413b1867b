from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from edm_ray.data.codec import decode, encode
from edm_ray.data.importers.digits import load_digits, split_digits
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.data.write import write_dataset
from edm_ray.errors import InputError, IntegrityError


def _write(path, rows=10, channels=3, **kw):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, channels, 4, 4), np.uint8)
    labels = np.arange(rows, dtype=np.int64) % 3
    dataset = write_dataset(str(path), images, labels, ["a", "b", "c"], name="noise", split="train", num_shards=3, **kw)
    return dataset, images, labels


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back_pixel_for_pixel(tmp_path, channels):
    dataset, images, labels = _write(tmp_path / "d", channels=channels)
    pixels = open_reader(dataset)
    assert np.array_equal(pixels.images, images) and np.array_equal(pixels.labels, labels)
    assert dataset.shards[0].name == "train-00000-of-00003.parquet"
    values = images.transpose(1, 0, 2, 3).reshape(channels, -1) / 127.5 - 1
    assert np.allclose(dataset.mean, values.mean(1), atol=1e-6) and np.allclose(dataset.std, values.std(1), atol=1e-6)


def test_the_same_images_give_the_same_identity_wherever_they_lie(tmp_path):
    assert _write(tmp_path / "a")[0].hash == _write(tmp_path / "b")[0].hash


def test_shards_follow_the_hugging_face_convention(tmp_path):
    dataset, _, _ = _write(tmp_path / "d")
    schema = pq.read_schema(tmp_path / "d" / dataset.shards[0].name)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["label"]["names"] == ["a", "b", "c"]


def test_the_digits_split_uses_every_row_once_with_classes_in_proportion():
    split = split_digits()
    images, labels = load_digits()
    assert len(split["train"][1]) == 1297 and len(split["heldout"][1]) == 500
    together = np.concatenate([part[0] for part in split.values()]).reshape(1797, -1)
    assert np.array_equal(np.sort(together, axis=0), np.sort(images.reshape(1797, -1), axis=0))
    assert np.abs(np.bincount(split["heldout"][1]) - np.bincount(labels) * 500 / 1797).max() <= 1.5


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    dataset, _, _ = _write(tmp_path / "d")
    path = tmp_path / "d" / dataset.shards[1].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-20]))
    with pytest.raises(InputError, match=dataset.shards[1].name):
        open_reader(dataset)


def test_a_data_set_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="edm-ray prepare"):
        open_dataset(str(tmp_path / "nothing"))
    _write(tmp_path / "two" / "train")
    with pytest.raises(InputError, match=r"holds one: give .*two/train$"):
        open_dataset(str(tmp_path / "two"))
    _write(tmp_path / "two" / "heldout")
    (tmp_path / "two" / "notes").mkdir()
    with pytest.raises(InputError, match=r"holds several: give one of .*two/heldout, .*two/train$"):
        open_dataset(str(tmp_path / "two"))


def test_labels_out_of_range_are_refused(tmp_path):
    images = np.zeros((2, 1, 4, 4), np.uint8)
    with pytest.raises(InputError, match=r"0\.\.1, got 0\.\.2"):
        write_dataset(str(tmp_path), images, np.array([0, 2]), ["a", "b"], name="x", split="train")


def test_pixels_survive_the_codec_exactly():
    import torch

    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(encode(decode(levels)), levels)
    assert encode(torch.tensor([-5.0, 5.0])).tolist() == [0, 255]


def test_integrity_errors_are_input_errors():
    assert issubclass(IntegrityError, InputError)


def test_with_xflip_an_epoch_holds_every_image_and_its_mirror_image_once(tmp_path):
    dataset, stored, _ = _write(tmp_path / "d")
    both = open_reader(dataset, xflip=True)
    images, labels = both.at(np.arange(20, dtype=np.int64), seed=3)
    expected = {image.tobytes() for image in stored} | {image[:, :, ::-1].tobytes() for image in stored}
    assert len(expected) == 20 and {image.numpy().tobytes() for image in images} == expected
    assert sorted(labels.tolist()) == sorted(2 * both.labels.tolist())
