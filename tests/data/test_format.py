from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edm_ray.data import format as shards
from edm_ray.data.format import decode_table, read_shard, row_groups, schema, write_shard
from edm_ray.data.manifest import open_dataset
from edm_ray.data.verify import read_verified
from edm_ray.data.write import write_dataset
from edm_ray.errors import IntegrityError
from tests.data.readers import make_dataset
from tests.data.sources import blank, picture, pixels_of, structs

IMAGES = pixels_of(10, 3, 4)
LABELS = np.arange(10) % 3


def _shard(encoding, images=IMAGES, labels=LABELS):
    names = [f"{i}.png" for i in range(len(images))]
    pictures = [shards.encode(image, encoding) for image in images]
    return write_shard(pictures, names, labels.tolist(), schema(["a", "b", "c"], encoding, images.shape[1:]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_both_encodings_are_read_back_pixel_for_pixel(encoding, channels):
    images = pixels_of(10, channels, 4)
    read, labels = read_shard(_shard(encoding, images), "x", channels, 4)
    assert np.array_equal(read, images) and np.array_equal(labels, LABELS) and labels.dtype == np.int64


def test_the_raw_encoding_says_its_layout_and_png_says_it_to_hugging_face():
    raw = pq.read_schema(pa.BufferReader(_shard("raw")))
    note = json.loads(raw.field("image").metadata[b"edm_ray"])
    assert note == {"shape": [3, 4, 4], "dtype": "uint8", "layout": "CHW", "class_names": ["a", "b", "c"]}
    assert raw.field("image").type == pa.binary(48) and b"huggingface" not in (raw.metadata or {})
    png = pq.read_schema(pa.BufferReader(_shard("png")))
    features = json.loads(png.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    assert png.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_row_groups_are_cut_by_bytes_and_their_place_is_known(monkeypatch, encoding):
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 200 if encoding == "png" else 3 * 48)
    content = _shard(encoding)
    groups = row_groups(content)
    assert len(groups) > 2 and sum(group["rows"] for group in groups) == 10
    if encoding == "raw":
        assert [group["rows"] for group in groups] == [3, 3, 3, 1]
    file, first = pq.ParquetFile(pa.BufferReader(content)), 0
    for index, group in enumerate(groups):
        piece = content[group["offset"] : group["offset"] + group["bytes"]]
        pixels = [shards.encode(image, encoding) for image in IMAGES[first : first + group["rows"]]]
        assert all(p in piece for p in pixels), "the pictures lie where the row group says"
        images, _ = decode_table(file.read_row_group(index), "x", 3, 4)
        assert np.array_equal(images, IMAGES[first : first + group["rows"]])
        first += group["rows"]


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_any_flipped_byte_of_a_picture_is_found_by_the_page_checksum(encoding):
    content = _shard(encoding)
    first = content.index(shards.encode(IMAGES[0], encoding)[-20:])
    for place in range(first, first + 20, 5):
        damaged = bytearray(content)
        damaged[place] ^= 1
        with pytest.raises(IntegrityError, match=r"^shard-7: .*CRC"):
            read_shard(bytes(damaged), "shard-7", 3, 4)


def _table(images, labels=(0, 1, 2)):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": images, "label": labels}), sink)
    return bytes(sink.getvalue())


PNGS = [picture(image) for image in IMAGES[:3]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_shard("png")[:-8], "not a readable Parquet file"),
        (_shard("png")[:100], "not a readable Parquet file"),
        (b"", "not a readable Parquet file"),
        (_table(structs(PNGS), pa.array([0, None, 2])), "row 1: the label is null"),
        (_table(structs(PNGS), [0.0, 1.0, 2.0]), "column 'label' holds double"),
        (_table(structs(PNGS), ["a", "b", "c"]), "column 'label' holds string"),
        (_table([1, 2, 3]), "column 'image' holds int64"),
        (_table(structs([PNGS[0], None, PNGS[2]])), "row 1: the picture is null"),
        (_table(structs([PNGS[0], b"", PNGS[2]])), "row 1: the picture is empty"),
        (_table(structs([PNGS[0], PNGS[1], b"no"])), "row 2: cannot identify"),
        (_table(structs([PNGS[0], blank((8, 8)), PNGS[2]])), "row 1: size 8x8, the data set has 4x4"),
        (_table(structs([PNGS[0], blank(mode="L"), PNGS[2]])), "row 1: picture of mode L, the data set has mode RGB"),
        (_table(pa.array([b"x" * 12] * 3, pa.binary(12))), "12 bytes a picture"),
        (_table(pa.array([b"x" * 48, None, b"x" * 48], pa.binary(48))), "row 1: the picture is null"),
    ],
)
def test_what_is_wrong_with_a_shard_is_reported_with_its_row(content, says):
    with pytest.raises(IntegrityError, match=rf"^shard-7: .*{says}"):
        read_shard(content, "shard-7", 3, 4)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_reading_starts_no_threads_of_arrow(tmp_path):
    """A process that ended soon after reading was aborted by them, about one time in twenty."""
    uri = str(tmp_path / "d")
    make_dataset(tmp_path / "d")
    code = """
import os, sys
from edm_ray.data.importers.parquet import Parquet
from edm_ray.data.importers.source import SourceSpec
from edm_ray.data.manifest import open_dataset
from edm_ray.data.verify import read_verified

dataset, before = open_dataset(sys.argv[1]), os.listdir("/proc/self/task")
read_verified(dataset, dataset.shards[0])
Parquet(SourceSpec(uri=sys.argv[1], kind="parquet")).record(0)
assert os.listdir("/proc/self/task") == before
"""
    subprocess.run([sys.executable, "-c", code, uri], check=True, timeout=120)


def test_a_missing_column_is_named():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": structs(PNGS)}), sink)
    with pytest.raises(IntegrityError, match=r"column 'label' is missing; columns are \['image'\]"):
        read_shard(bytes(sink.getvalue()), "x", 3, 4)


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_the_manifest_says_counts_statistics_and_where_row_groups_lie(tmp_path, encoding):
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    uri = str(tmp_path)
    write_dataset(uri, IMAGES, labels, ["a", "b", "c"], name="x", split="test", num_shards=3, encoding=encoding)
    dataset = open_dataset(uri)
    assert dataset.class_counts == (3, 2, 5) and dataset.encoding == encoding and dataset.split == "test"
    values = IMAGES.transpose(1, 0, 2, 3).reshape(3, -1) / 127.5 - 1
    assert np.allclose(dataset.mean, values.mean(1), atol=1e-6) and np.allclose(dataset.std, values.std(1), atol=1e-6)
    assert [shard.first_row for shard in dataset.shards] == [0, 3, 6]
    for shard in dataset.shards:
        assert sum(group.rows for group in shard.row_groups) == shard.rows
        assert np.array_equal(read_verified(dataset, shard)[0], IMAGES[shard.first_row :][: shard.rows])


def test_both_encodings_hold_the_same_data(tmp_path):
    for encoding in ("png", "raw"):
        uri = str(tmp_path / encoding)
        write_dataset(uri, IMAGES, LABELS, ["a", "b", "c"], name="x", split="train", encoding=encoding)
    png, raw = (open_dataset(str(tmp_path / encoding)) for encoding in ("png", "raw"))
    assert png.mean == raw.mean and png.std == raw.std and png.class_counts == raw.class_counts


@pytest.mark.ray
@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_ray_data_reads_the_shards(tmp_path, ray_session, encoding):
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    write_dataset(str(tmp_path), IMAGES, LABELS, ["a", "b", "c"], name="x", split="train", encoding=encoding)
    rows = ray.data.read_parquet(str(tmp_path), file_extensions=["parquet"]).take_all()
    names = [row["image"]["path"] if encoding == "png" else row["path"] for row in rows]
    assert sorted(names) == [f"{i:08d}.png" for i in range(10)]
    for row, name in zip(rows, names):
        index = int(name.split(".")[0])
        stored = row["image"]["bytes"] if encoding == "png" else row["image"]
        pixels = shards.decode_png(stored, 3) if encoding == "png" else np.frombuffer(stored, np.uint8).reshape(3, 4, 4)
        assert np.array_equal(pixels, IMAGES[index]) and row["label"] == LABELS[index]
