"""`edm-ray prepare` killed, out of disk, on bad records: nothing lost, nothing half-published, all named."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edm_ray.cli import main
from edm_ray.data import plan as planning
from edm_ray.data.claim import claim
from edm_ray.data.manifest import open_dataset
from edm_ray.data.plan import PrepareShards
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.artifacts import path_of
from tests.data.sources import FOLDER_IMAGES as IMAGES
from tests.data.sources import (
    blank,
    files_in,
    make_folder,
    make_parquet,
    make_zip,
    picture,
    plan_of,
    prepare_here,
    prepare_shard,
    put,
)
from tests.processes import ray_processes


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "src", IMAGES)


def _error(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("edm-ray: ") and text.count("\n") == 1
    return text


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_shard_whose_worker_is_killed_is_written_by_another(tmp_path, ray_session, capsys):
    command = ["prepare", "photographs", str(tmp_path / "d"), "--resolution", "32", "--num", "2000", "--shards", "4"]
    ended = []
    thread = threading.Thread(target=lambda: ended.append(main([*command, "--workers", "2"])))
    thread.start()
    deadline = time.monotonic() + 120
    while not (victims := ray_processes("Worker.make")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(victims[0][0], signal.SIGKILL)
    thread.join()
    assert ended == [0] and capsys.readouterr().out.count("records: 2,000 of 2,000") == 1
    assert main([*command[:2], str(tmp_path / "calm"), *command[3:]]) == 0
    assert files_in(tmp_path / "d") == files_in(tmp_path / "calm")


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [0, 2, 4])
def test_after_a_kill_the_same_command_does_only_what_is_missing(folder, tmp_path, monkeypatch, killed_at):
    plan, dest = plan_of(folder, shards=5), str(tmp_path / "d")
    prepare_here(str(tmp_path / "calm"), plan)

    real_write = uris.write_bytes

    def die(uri, content):
        if "/shard/" in uri:
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
    prepare_here(dest, plan)
    assert len(built) == 5 - killed_at
    assert files_in(tmp_path / "d") == files_in(tmp_path / "calm")


@pytest.mark.slow
def test_prepare_resumes_after_a_kill_where_it_was(tmp_path):
    """SIGKILL in the middle of a real `edm-ray prepare`."""
    command = ["prepare", "photographs", str(tmp_path / "d"), "--resolution", "32", "--num", "3000", "--shards", "60"]
    process = subprocess.Popen([sys.executable, "-c", f"from edm_ray.cli import main; main({command!r})"])
    sidecar, deadline = tmp_path / "d" / ".prepare", time.monotonic() + 120
    while len(list(sidecar.rglob("*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "d").glob("*.parquet")}
    entries = len(list(sidecar.rglob("*.safetensors")))
    assert 3 <= entries < 60 and not (tmp_path / "d" / "manifest.json").exists()
    assert main(command) == 0
    kept = [name for name, written in done.items() if (tmp_path / "d" / name).stat().st_mtime_ns == written]
    assert len(kept) >= entries, "finished shards were written again"
    assert main([*command[:2], str(tmp_path / "calm"), *command[3:]]) == 0
    assert files_in(tmp_path / "d") == files_in(tmp_path / "calm")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "entry"])
def test_a_finished_shard_that_was_damaged_is_written_again(folder, tmp_path, damage):
    plan, dest = plan_of(folder, shards=4), tmp_path / "d"
    entry = prepare_shard(str(dest), plan, 1)
    path = dest / entry.name
    whole = path.read_bytes()
    if damage == "entry":
        recipe = PrepareShards(dest=str(dest), plan=plan)
        Path(path_of(recipe.store, recipe.shards()[1])).write_bytes(b'{"name"')
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage == "flip" else whole[:-1])
    assert prepare_shard(str(dest), plan, 1) == entry and path.read_bytes() == whole


@pytest.mark.parametrize("fails_on", ["plan.json", "of-00004.parquet", ".safetensors", "manifest.json"])
def test_a_full_disk_is_reported_and_nothing_is_half_published(folder, tmp_path, capsys, monkeypatch, fails_on):
    dest = tmp_path / "d"
    call = "create_bytes" if fails_on in ("manifest.json", "plan.json") else "write_bytes"
    real = getattr(uris, call)

    def write(uri, content):
        if uri.endswith(fails_on) and not (fails_on.endswith("parquet") and "00000-of" in uri):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(uri, content)

    with monkeypatch.context() as patch:
        patch.setattr(uris, call, write)
        text = _error(capsys, "prepare", folder, dest)
        assert "no space left while writing; free some and run the same command again" in text and str(dest) in text
        assert not (dest / "manifest.json").exists()
    assert main(["prepare", str(folder), str(dest)]) == 0
    assert main(["prepare", str(folder), str(tmp_path / "calm")]) == 0
    assert files_in(dest) == files_in(tmp_path / "calm")


def test_of_two_preparers_at_the_same_moment_one_gets_the_place(folder, tmp_path, monkeypatch):
    """Both have seen that nothing is there; the slower one is told what differs before it has written a shard."""
    dest, looked, real = str(tmp_path / "d"), threading.Barrier(2), uris.list_names
    monkeypatch.setattr(uris, "list_names", lambda uri: (real(uri), looked.wait(10))[0])
    told = []

    def attempt(plan):
        try:
            claim(dest, plan)
        except InputError as error:
            told.append(str(error))

    plans = [plan_of(folder), plan_of(folder, encoding="raw")]
    threads = [threading.Thread(target=attempt, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(told) == 1 and "encoding: 'png' -> 'raw'" in told[0]) or "encoding: 'raw' -> 'png'" in told[0]
    claim(dest, plans["-> 'png'" in told[0]])  # the faster one's


def test_what_killed_attempts_left_goes_when_the_data_set_is_there(folder, tmp_path):
    plan, dest = plan_of(folder), tmp_path / "d"
    claim(str(dest), plan)
    old, young = put(dest / ".train-00000-of-00004.parquet.abc.part", b"x"), put(dest / ".a.part", b"x")
    os.utime(old, (0, 0))
    prepare_here(str(dest), plan)
    assert not old.exists() and young.exists()


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
    assert "skipped 2 records" in capsys.readouterr().out
    assert len(open_reader(dataset).images) == 18


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
    assert len(dataset.shards) == 1 and open_reader(dataset).images.shape[0] == 4


def test_a_source_without_one_usable_record_is_refused(tmp_path, capsys):
    path = make_zip(tmp_path / "z.zip", {"a.png": b"no", "b.png": b""})
    text = _error(capsys, "prepare", path, tmp_path / "d", "--on-error", "skip")
    assert "none of 2 pictures looked at can be used; the first: a.png: not a readable picture" in text
