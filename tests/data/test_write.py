"""`edm-ray prepare`: planned once, the same bytes however it is run."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.data import plan as planning
from edm_ray.data.importers.source import RecordError
from edm_ray.data.manifest import open_dataset
from edm_ray.data.plan import PrepareShards, finish
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError
from edm_ray.storage import uris
from tests.data.sources import FOLDER_IMAGES as IMAGES
from tests.data.sources import files_in, make_folder, make_parquet, picture, plan_of, prepare_here, prepare_shard, put


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "src", IMAGES)


def _error(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("edm-ray: ") and text.count("\n") == 1
    return text


def test_the_command_writes_what_the_source_holds(folder, tmp_path, capsys):
    assert main(["prepare", str(folder), str(tmp_path / "d"), "--encoding", "raw", "--shards", "3"]) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    pixels = open_reader(dataset)
    order = sorted(range(20), key=lambda i: ("ab"[i % 2], i))
    assert np.array_equal(pixels.images, IMAGES[order]) and pixels.labels.tolist() == [i % 2 for i in order]
    assert [s.name for s in dataset.shards] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert dataset.class_names == ("a", "b") and dataset.class_counts == (10, 10) and dataset.encoding == "raw"
    assert dataset.source["source"]["uri"] == str(folder) and not (tmp_path / "d" / ".prepare").exists()
    text = capsys.readouterr().out
    assert "records: 20 of 20" in text and "20 images of 8x8x3, 2 classes, 3 shards; standard deviation" in text


def test_the_same_command_again_leaves_the_data_set_as_it_is(folder, tmp_path, capsys):
    command = ["prepare", str(folder), str(tmp_path / "d")]
    assert main(command) == 0
    before = files_in(tmp_path / "d")
    assert main(command) == 0 and "is left as it is" in capsys.readouterr().out
    assert files_in(tmp_path / "d") == before


def test_where_a_source_lies_is_not_part_of_the_identity(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "src")
    for source, dest in ((folder, "d"), (tmp_path / "elsewhere" / "src", "e")):
        assert main(["prepare", str(source), str(tmp_path / dest)]) == 0
    d, e = open_dataset(str(tmp_path / "d")), open_dataset(str(tmp_path / "e"))
    assert d.hash == e.hash and d.source != e.source


def test_shards_written_in_any_order_give_the_same_bytes(folder, tmp_path):
    plan = plan_of(folder, shards=5)
    prepare_here(str(tmp_path / "a"), plan)
    for i in (3, 0, 4, 2, 1):
        prepare_shard(str(tmp_path / "b"), plan, i)
    finish(PrepareShards(dest=str(tmp_path / "b"), plan=plan))
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


@pytest.mark.ray
def test_one_worker_and_three_ray_tasks_give_the_same_bytes(folder, tmp_path, ray_session, capsys):
    common = ["--shards", "5", "--resolution", "4"]
    assert main(["prepare", str(folder), str(tmp_path / "one"), *common]) == 0
    assert main(["prepare", str(folder), str(tmp_path / "three"), *common, "--workers", "3"]) == 0
    assert files_in(tmp_path / "one") == files_in(tmp_path / "three")
    assert capsys.readouterr().out.count("records: 20 of 20") == 2


@pytest.mark.ray
def test_a_bad_picture_in_a_ray_task_is_one_line_with_its_name(folder, tmp_path, ray_session, capsys, monkeypatch):
    monkeypatch.setattr(planning, "PROBED", 1)
    put(folder / "b" / "005.png", b"no")
    text = _error(capsys, "prepare", folder, tmp_path / "d", "--workers", "2", "--shards", "4")
    assert f"{folder}: b/005.png: not a readable picture" in text and "Traceback" not in text
    assert not (tmp_path / "d" / "manifest.json").exists()


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_cpus_are_refused(folder, tmp_path, ray_session, capsys):
    text = _error(capsys, "prepare", folder, tmp_path / "d", "--workers", "99")
    assert "--workers 99: this machine has" in text


@pytest.mark.parametrize("complete", [True, False])
def test_another_source_or_option_in_the_same_place_is_refused_with_the_difference(
    folder, tmp_path, capsys, monkeypatch, complete
):
    dest = tmp_path / "d"
    assert main(["prepare", str(folder), str(dest)]) == 0
    if not complete:
        plan = open_dataset(str(dest)).source
        shutil.rmtree(dest)
        put(dest / ".prepare" / "plan.json", json.dumps({"format": 1, **plan}).encode())
    text = _error(capsys, "prepare", folder, dest, "--resolution", "4", "--encoding", "raw")
    assert "pictures.resolution: None -> 4" in text and "encoding: 'png' -> 'raw'" in text
    put(folder / "a" / "new.png", picture(IMAGES[0]))
    assert "records: 20 -> 21" in _error(capsys, "prepare", folder, dest)


def test_a_place_with_other_things_in_it_is_refused(folder, tmp_path, capsys):
    put(tmp_path / "d" / "thesis.tex", b"")
    assert "is not empty" in _error(capsys, "prepare", folder, tmp_path / "d")
    assert "is not empty" in _error(capsys, "prepare", folder, folder)


def test_parquet_files_are_never_overwritten_by_their_own_data_set(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    path = make_parquet(tmp_path / "p" / "train-00000-of-00001.parquet", {"i": [picture(i) for i in IMAGES]})
    before = path.read_bytes()
    assert "is not empty" in _error(capsys, "prepare", tmp_path / "p", tmp_path / "p")
    assert path.read_bytes() == before


def test_shards_are_cut_by_bytes_but_never_below_four(folder):
    assert plan_of(folder).num_shards == 4
    raw = 3 * 8 * 8
    assert plan_of(folder, encoding="raw", shard_mib=2 * (raw + 25) / 2**20).num_shards in (9, 10, 11)
    assert plan_of(folder, shards=99).num_shards == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shards", "0"], "--shards 0: give 1 or more"),
        (["--shard-mib", "0"], "--shard-mib 0.0: give more than 0"),
        (["--workers", "-1"], "--workers -1: give 1 or more"),
        (["--kind", "zipp"], "--kind zipp: unknown (did you mean 'zip'?)"),
        (["--kind", "zip"], "a folder without .zip files; --kind zip reads one file"),
        (["--pad", "4"], "--pad 4: the picture has 8 pixels already"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_fix(folder, tmp_path, capsys, options, says):
    assert says in _error(capsys, "prepare", folder, tmp_path / "d", *options)
    assert not (tmp_path / "d").exists()


def test_a_source_that_changes_while_it_is_read_is_refused(folder, tmp_path):
    plan = plan_of(folder)
    planning._open.clear()
    put(folder / "a" / "new.png", picture(IMAGES[0]))
    with pytest.raises(InputError, match="changed since it was planned with"):
        prepare_shard(str(tmp_path / "d"), plan, 0)


def test_pictures_are_read_only_when_their_shard_is_written(folder, tmp_path, monkeypatch):
    """Memory does not grow with the source: listing reads no picture, a shard reads its own."""
    read = []
    real = uris.read_bytes
    monkeypatch.setattr(planning, "PROBED", 1)
    monkeypatch.setattr(uris, "read_bytes", lambda uri: read.append(uri) or real(uri))
    plan = plan_of(folder, shards=5)
    assert len([uri for uri in read if uri.endswith(".png")]) == 1
    read.clear()
    prepare_shard(str(tmp_path / "d"), plan, 2)
    assert len([uri for uri in read if uri.endswith(".png")]) == 4


def test_records_read_ahead_come_in_their_order_and_errors_stay_with_theirs():
    class Slow:
        concurrent, class_names, fingerprint, notes = 4, (), "", ()
        most = under_way = 0

        def __len__(self):
            return 30

        def record(self, index):
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            time.sleep(0.003 * (index % 4))
            self.under_way -= 1
            if index == 7:
                raise RecordError("seven")
            return index

    source, seen = Slow(), []
    for read in planning._records(source, 3, 28):
        try:
            seen.append(read())
        except RecordError as error:
            seen.append(str(error))
    assert seen == [3, 4, 5, 6, "seven", *range(8, 28)] and 1 < source.most <= 4


def test_digits_and_photographs_are_prepared_by_name(tmp_path):
    assert main(["prepare", "digits", str(tmp_path / "digits")]) == 0
    assert open_dataset(str(tmp_path / "digits" / "heldout")).rows == 500
    assert main(["prepare", "photographs", str(tmp_path / "p"), "--resolution", "8", "--num", "40"]) == 0
    dataset = open_dataset(str(tmp_path / "p"))
    assert (dataset.rows, dataset.resolution, dataset.channels, dataset.class_counts) == (40, 8, 3, (20, 20))
