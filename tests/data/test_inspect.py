from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from edm_ray.cli import main
from edm_ray.data.manifest import open_dataset
from edm_ray.data.verify import pooled_std
from edm_ray.data.write import write_dataset
from edm_ray.evaluation.grids import GAP_LEVEL
from edm_ray.storage.commit import SEAL, sealed
from tests.data.readers import make_dataset

COLOURS = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]


def resealed(manifest):
    """As a writer of these bytes would have sealed them."""
    del manifest[SEAL]
    return sealed(manifest)


def _write(path, labels, names=("red", "green", "blue"), **kw):
    """Pictures of one colour each, the colour of their class."""
    images = np.array([COLOURS[label] for label in labels], np.uint8)[:, :, None, None].repeat(16, 2).repeat(16, 3)
    labels = np.array(labels) if names else np.zeros(len(labels), np.int64)
    return write_dataset(str(path), images, labels, list(names), name="colours", split="train", **kw)


def test_it_says_what_is_in_a_data_set_and_that_every_shard_is_whole(tmp_path, capsys):
    dataset = _write(tmp_path / "d", [0, 1, 2, 0, 0, 1], num_shards=3)
    assert main(["inspect", str(tmp_path / "d")]) == 0
    text = capsys.readouterr().out
    for line in ("6 pictures of 16x16x3", "3 of 2 rows", "encoding png", "3, of 1 to 3 pictures", "3  red", "1  blue"):
        assert line in text, line
    assert dataset.hash in text and "all 3 shards: sha256, page checksums, pictures, labels" in text
    assert f"sigma_data   {pooled_std(dataset):.2f} fits these data" in text


def test_it_says_what_a_node_reads_in_either_order(tmp_path, capsys):
    dataset, _, _ = make_dataset(tmp_path / "d", rows=4800, shards=48)
    assert main(["inspect", dataset.uri, "--nodes", "3", "--lanes", "6", "--no-verify"]) == 0
    text = capsys.readouterr().out
    size = sum(entry["bytes"] for entry in dataset.files.values()) / 2**20
    assert f"each node reads {size:.1f} MiB once, and keeps 0.9 MiB decoded" in text
    said = re.search(r"each of 3 nodes reads ([\d.]+) MiB an epoch, ([\d.]+) times its share", text)
    assert said and 1.0 <= float(said[2]) <= 1 + 6 / 48 and float(said[1]) == pytest.approx(size / 3, rel=0.2)
    assert main(["inspect", dataset.uri, "--lanes", "49", "--no-verify"]) == 0
    assert "49 lanes (--lanes) need as many shards, there are 48" in capsys.readouterr().out
    assert main(["inspect", dataset.uri, "--nodes", "0"]) == 2


def test_sigma_data_is_the_spread_of_all_values_together(tmp_path):
    dataset = _write(tmp_path / "d", [0, 1, 2, 0])
    values = np.array([COLOURS[label] for label in (0, 1, 2, 0)]) / 127.5 - 1
    assert pooled_std(dataset) == pytest.approx(values.std(), abs=1e-5)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "label", "rows"])
def test_damaged_shards_are_named_and_the_exit_code_is_2(tmp_path, capsys, damage):
    dataset = _write(tmp_path / "d", [0, 1, 2, 0, 0, 1], num_shards=3, encoding="raw")
    bad = [dataset.shards[0].name, dataset.shards[2].name]
    for name in bad:
        path = tmp_path / "d" / name
        content = bytearray(path.read_bytes())
        if damage == "remove":
            path.unlink()
        elif damage == "flip":
            content[100] ^= 1
            path.write_bytes(content)
        elif damage == "truncate":
            path.write_bytes(content[:-9])
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    if damage == "label":
        manifest["class_names"], manifest["class_counts"] = [], [6]
        bad = [dataset.shards[0].name, dataset.shards[1].name, dataset.shards[2].name]
    if damage == "rows":
        for index in (0, 2):
            manifest["shards"][index]["rows"] = 3
    (tmp_path / "d" / "manifest.json").write_bytes(resealed(manifest))
    assert main(["inspect", str(tmp_path / "d")]) == 2
    out, err = capsys.readouterr()
    assert f"{len(bad)} of 3 shards are damaged: {', '.join(bad)}" in err
    assert all(f"DAMAGED      {tmp_path}/d/{name}: " in out for name in bad) and "verified" not in out


def test_no_verify_reads_no_shard(tmp_path, capsys):
    dataset = _write(tmp_path / "d", [0, 1, 2])
    for shard in dataset.shards:
        (tmp_path / "d" / shard.name).unlink()
    assert main(["inspect", str(tmp_path / "d"), "--no-verify"]) == 0
    assert "verified     no" in capsys.readouterr().out


def test_the_grid_has_a_class_a_row_and_grey_where_pictures_are_missing(tmp_path):
    _write(tmp_path / "d", [2, 2, 0, 1, 0, 2, 2])
    for flags in ([], ["--no-verify"]):
        out = tmp_path / f"{len(flags)}" / "grid.png"
        assert main(["inspect", str(tmp_path / "d"), "--out", str(out), "--columns", "3", *flags]) == 0
        sheet = np.asarray(Image.open(out))
        left = sheet.shape[1] - (3 * (48 + 2) - 2)
        seen = [[tuple(sheet[row * 50 + 24, left + column * 50 + 24]) for column in range(3)] for row in range(3)]
        grey = (GAP_LEVEL,) * 3
        red, green, blue = COLOURS
        assert seen == [[red, red, grey], [green, grey, grey], [blue, blue, blue]]
        assert (sheet[:, :left] < 128).any(), "the class names stand to the left"


def test_the_grid_of_a_data_set_without_classes_is_its_first_pictures(tmp_path):
    _write(tmp_path / "d", [0, 1, 2, 0], names=())
    assert main(["inspect", str(tmp_path / "d"), "--out", str(tmp_path / "g.png"), "--columns", "2"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    assert tuple(sheet[24, 24]) == COLOURS[0] and tuple(sheet[24, 74]) == COLOURS[1] and sheet.shape[1] == 98


def test_a_manifest_of_an_older_version_is_still_described(tmp_path, capsys):
    _write(tmp_path / "d", [0, 1, 2])
    path = tmp_path / "d" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("class_counts", "encoding", "split", "skipped"):
        del manifest[key]
    for shard in manifest["shards"]:
        del shard["row_groups"]
    path.write_bytes(resealed(manifest))
    assert main(["inspect", str(tmp_path / "d"), "--out", str(tmp_path / "g.png")]) == 0
    assert "3: red, green, blue" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "no")]) == 2
    assert "no data set" in capsys.readouterr().err
    _write(tmp_path / "d", [0])
    assert main(["inspect", str(tmp_path / "d"), "--columns", "0"]) == 2
    assert open_dataset(str(tmp_path / "d")).rows == 1
