"""`edm-ray prepare`: planned once, the same bytes however it is run, nothing lost and nothing half-published."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.data import plan as planning
from edm_ray.data.importers.pictures import PictureOptions
from edm_ray.data.importers.source import RecordError, SourceSpec
from edm_ray.data.manifest import open_dataset
from edm_ray.data.plan import claim, finish, make_plan, prepare_here, prepare_shard
from edm_ray.data.reader import Pixels
from edm_ray.errors import InputError
from edm_ray.storage import uris
from tests.data.sources import blank, make_folder, make_parquet, make_zip, picture, pixels_of, put

IMAGES = pixels_of(20, 3, 8)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "src", IMAGES)


def _plan(folder, **options):
    return make_plan(SourceSpec(uri=str(folder), kind="folder"), PictureOptions(), **options)[0]


def _files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _error(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("edm-ray: ") and text.count("\n") == 1
    return text


def test_the_command_writes_what_the_source_holds(folder, tmp_path, capsys):
    assert main(["prepare", str(folder), str(tmp_path / "d"), "--encoding", "raw", "--shards", "3"]) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    pixels = Pixels(dataset)
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
    before = _files(tmp_path / "d")
    assert main(command) == 0 and "is left as it is" in capsys.readouterr().out
    assert _files(tmp_path / "d") == before


def test_where_a_source_lies_is_not_part_of_the_identity(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "src")
    for source, dest in ((folder, "d"), (tmp_path / "elsewhere" / "src", "e")):
        assert main(["prepare", str(source), str(tmp_path / dest)]) == 0
    d, e = open_dataset(str(tmp_path / "d")), open_dataset(str(tmp_path / "e"))
    assert d.hash == e.hash and d.source != e.source


def test_shards_written_in_any_order_give_the_same_bytes(folder, tmp_path):
    plan = _plan(folder, shards=5)
    prepare_here(str(tmp_path / "a"), plan, lambda done, total: None)
    entries = {i: prepare_shard(str(tmp_path / "b"), plan, i) for i in (3, 0, 4, 2, 1)}
    finish(str(tmp_path / "b"), plan, [entries[i] for i in range(5)])
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


@pytest.mark.ray
def test_one_worker_and_three_ray_tasks_give_the_same_bytes(folder, tmp_path, ray_session, capsys):
    common = ["--shards", "5", "--resolution", "4"]
    assert main(["prepare", str(folder), str(tmp_path / "one"), *common]) == 0
    assert main(["prepare", str(folder), str(tmp_path / "three"), *common, "--workers", "3"]) == 0
    assert _files(tmp_path / "one") == _files(tmp_path / "three")
    assert capsys.readouterr().out.count("records: 20 of 20") == 2


@pytest.mark.ray
def test_a_bad_picture_in_a_ray_task_is_one_line_with_its_name(folder, tmp_path, ray_session, capsys, monkeypatch):
    monkeypatch.setattr(planning, "PROBED", 1)
    put(folder / "b" / "005.png", b"no")
    text = _error(capsys, "prepare", folder, tmp_path / "d", "--workers", "2", "--shards", "4")
    assert f"{folder}: b/005.png: not a readable picture" in text and "Traceback" not in text
    assert not (tmp_path / "d" / "manifest.json").exists()


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_cpus_is_said(folder, tmp_path, ray_session, capsys):
    text = _error(capsys, "prepare", folder, tmp_path / "d", "--workers", "99")
    assert "prepare needs 99 CPUs" in text


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [0, 2, 4])
def test_after_a_kill_the_same_command_does_only_what_is_missing(folder, tmp_path, monkeypatch, killed_at):
    plan, dest = _plan(folder, shards=5), str(tmp_path / "d")
    prepare_here(str(tmp_path / "calm"), plan, lambda done, total: None)

    real_write = uris.write_bytes

    def die(uri, content):
        if uri.endswith(".json"):
            raise _Killed
        real_write(uri, content)

    claim(dest, plan)
    for index in range(killed_at):
        prepare_shard(dest, plan, index)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        # The file is there, its entry is not: the moment between the two writes.
        patch.setattr(uris, "write_bytes", die)
        prepare_shard(dest, plan, killed_at)
    assert len(list((tmp_path / "d").glob("*.parquet"))) == killed_at + 1
    with pytest.raises(InputError, match="no data set"):
        open_dataset(dest)
    built = []
    real = planning.build_shard
    monkeypatch.setattr(planning, "build_shard", lambda name, *rest: built.append(name) or real(name, *rest))
    claim(dest, plan)
    prepare_here(dest, plan, lambda done, total: None)
    assert len(built) == 5 - killed_at
    assert _files(tmp_path / "d") == _files(tmp_path / "calm")


def test_a_killed_process_is_taken_up_where_it_was(tmp_path):
    """SIGKILL in the middle of a real `edm-ray prepare`."""
    command = ["prepare", "photographs", str(tmp_path / "d"), "--resolution", "32", "--crops", "3000", "--shards", "60"]
    process = subprocess.Popen([sys.executable, "-c", f"from edm_ray.cli import main; main({command!r})"])
    sidecar, deadline = tmp_path / "d" / ".prepare", time.monotonic() + 120
    while len(list(sidecar.glob("0*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "d").glob("*.parquet")}
    entries = len(list(sidecar.glob("0*.json")))
    assert 3 <= entries < 60 and not (tmp_path / "d" / "manifest.json").exists()
    assert main(command) == 0
    kept = [name for name, written in done.items() if (tmp_path / "d" / name).stat().st_mtime_ns == written]
    assert len(kept) >= entries, "finished shards were written again"
    assert main([*command[:2], str(tmp_path / "calm"), *command[3:]]) == 0
    assert _files(tmp_path / "d") == _files(tmp_path / "calm")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "entry"])
def test_a_finished_shard_that_was_damaged_is_written_again(folder, tmp_path, damage):
    plan, dest = _plan(folder, shards=4), tmp_path / "d"
    entry = prepare_shard(str(dest), plan, 1)
    path = dest / entry.name
    whole = path.read_bytes()
    if damage == "entry":
        (dest / ".prepare" / "00001.json").write_bytes(b'{"name"')
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage == "flip" else whole[:-1])
    assert prepare_shard(str(dest), plan, 1) == entry and path.read_bytes() == whole


@pytest.mark.parametrize("complete", [True, False])
def test_another_source_or_option_in_the_same_place_is_refused_with_the_difference(
    folder, tmp_path, capsys, monkeypatch, complete
):
    dest = tmp_path / "d"
    assert main(["prepare", str(folder), str(dest)]) == 0
    if not complete:
        plan = open_dataset(str(dest)).source
        shutil.rmtree(dest)
        put(dest / ".prepare" / "plan.json", json.dumps(plan).encode())
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


@pytest.mark.parametrize("fails_on", ["plan.json", "of-00004.parquet", "00002.json", "manifest.json"])
def test_a_full_disk_is_said_and_nothing_is_half_published(folder, tmp_path, capsys, monkeypatch, fails_on):
    dest = tmp_path / "d"
    real = uris.write_bytes

    def write(uri, content):
        if uri.endswith(fails_on) and not (fails_on.endswith("parquet") and "00000-of" in uri):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(uri, content)

    with monkeypatch.context() as patch:
        patch.setattr(uris, "write_bytes", write)
        text = _error(capsys, "prepare", folder, dest)
        assert "no space left while writing; free some and run the same command again" in text and str(dest) in text
        assert not (dest / "manifest.json").exists()
    assert main(["prepare", str(folder), str(dest)]) == 0
    assert main(["prepare", str(folder), str(tmp_path / "calm")]) == 0
    assert _files(dest) == _files(tmp_path / "calm")


def test_a_part_of_a_file_never_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uris.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        uris.write_bytes(str(tmp_path / "x.bin"), b"abc")
    assert list(tmp_path.iterdir()) == []


def _bad_folder(tmp_path, bad):
    root = make_folder(tmp_path / "src", IMAGES)
    put(root / "a" / "004.png", bad)
    put(root / "b" / "007.png", b"")
    return root


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"no", "not a readable picture"),
        (blank((6, 6)), r"\(3, 6, 6\) (channels, height, width), a/000.png has (3, 8, 8); give --resolution"),
        (blank((8, 8), "L"), r"(1, 8, 8) (channels, height, width), a/000.png has (3, 8, 8); give --mode rgb"),
        (blank((8, 8), "RGBA"), "mode RGBA with transparency"),
        (blank((8, 6)), "8x6 is not square"),
    ],
    ids=["damaged", "size", "channels", "mode", "square"],
)
def test_records_that_cannot_be_used_are_named_or_skipped_and_listed(tmp_path, capsys, bad, says):
    root, says = _bad_folder(tmp_path, bad), says.replace("\\", "")
    text = _error(capsys, "prepare", root, tmp_path / "d")
    assert f"{root}: a/004.png: " in text and says in text
    assert main(["prepare", str(root), str(tmp_path / "e"), "--on-error", "skip"]) == 0
    dataset = open_dataset(str(tmp_path / "e"))
    assert dataset.rows == 18 and dataset.class_counts == (9, 9) and dataset.skipped.count == 2
    assert says in dataset.skipped.first[0] and dataset.skipped.first[1] == "b/007.png: the file is empty"
    assert "2 records were skipped" in capsys.readouterr().out
    assert len(Pixels(dataset).images) == 18


def test_labels_that_are_null_or_out_of_range_are_named_or_skipped(tmp_path, capsys):
    columns = {"img": [picture(i) for i in IMAGES[:6]], "fine_label": [0, 1, None, 7, -1, 1]}
    path = make_parquet(tmp_path / "p.parquet", columns, ["x", "y"])
    assert "p.parquet row 2: the label is null" in _error(capsys, "prepare", path, tmp_path / "d")
    assert main(["prepare", str(path), str(tmp_path / "e"), "--on-error", "skip"]) == 0
    dataset = open_dataset(str(tmp_path / "e"))
    assert dataset.rows == 3 and dataset.class_names == ("x", "y") and dataset.class_counts == (1, 2)
    assert [line.split(":")[0][-1] for line in dataset.skipped.first] == ["2", "3", "4"]
    assert dataset.skipped.first[1].endswith("label 7 is outside 0..1")
    assert main(["prepare", str(path), str(tmp_path / "f"), "--unlabelled"]) == 0
    assert open_dataset(str(tmp_path / "f")).rows == 6


def test_at_most_a_hundred_skipped_records_are_listed_and_all_are_counted(tmp_path):
    good = {f"{i:03d}.png": picture(IMAGES[0]) for i in range(4)}
    path = make_zip(tmp_path / "z.zip", good | {f"x{i:03d}.png": b"no" for i in range(150)})
    assert main(["prepare", str(path), str(tmp_path / "d"), "--on-error", "skip", "--shards", "3"]) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    assert dataset.rows == 4 and dataset.skipped.count == 150 and len(dataset.skipped.first) == 100
    assert len(dataset.shards) == 1 and Pixels(dataset).images.shape[0] == 4


def test_a_source_without_one_usable_record_is_refused(tmp_path, capsys):
    path = make_zip(tmp_path / "z.zip", {"a.png": b"no", "b.png": b""})
    text = _error(capsys, "prepare", path, tmp_path / "d", "--on-error", "skip")
    assert "none of 2 pictures looked at can be used; the first: a.png: not a readable picture" in text


def test_shards_are_cut_by_bytes_but_never_below_four(folder):
    assert _plan(folder).num_shards == 4
    raw = 3 * 8 * 8
    assert _plan(folder, encoding="raw", shard_mib=2 * (raw + 25) / 2**20).num_shards in (9, 10, 11)
    assert _plan(folder, shards=99).num_shards == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shards", "0"], "--shards 0: give 1 or more"),
        (["--shard-mib", "0"], "--shard-mib 0.0: give more than 0"),
        (["--workers", "0"], "--workers 0: give 1 or more"),
        (["--kind", "zipp"], "--kind zipp: unknown (did you mean 'zip'?)"),
        (["--kind", "zip"], "cannot be opened as a file: Is a directory"),
        (["--pad", "4"], "--pad 4: the picture has 8 pixels already"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_fix(folder, tmp_path, capsys, options, says):
    assert says in _error(capsys, "prepare", folder, tmp_path / "d", *options)
    assert not (tmp_path / "d").exists()


def test_a_source_that_changes_while_it_is_read_is_refused(folder, tmp_path):
    plan = _plan(folder)
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
    plan = _plan(folder, shards=5)
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
    assert main(["prepare", "photographs", str(tmp_path / "p"), "--resolution", "8", "--crops", "40"]) == 0
    dataset = open_dataset(str(tmp_path / "p"))
    assert (dataset.rows, dataset.resolution, dataset.channels, dataset.class_counts) == (40, 8, 3, (20, 20))
