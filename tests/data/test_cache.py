"""The node's cache: decoded once, whole or not there, within its limit, whoever dies."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from edm_ray.data import cache as caching
from edm_ray.data.cache import entry
from edm_ray.data.eviction import Cache, open_cache
from edm_ray.errors import InputError, IntegrityError

SHAPE = (60, 3, 8, 8)
FORK = multiprocessing.get_context("fork")


def pixels_of(seed: int, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def filler(seed: int = 0, log: Path | None = None, pause: float = 0.0, shape=SHAPE):
    """Puts rows ten at a time; notes each run in a file."""

    def fill(put):
        if log is not None:
            with log.open("a") as handle:
                handle.write("x")
        images = pixels_of(seed, shape)
        for first in range(0, shape[0], 10):
            time.sleep(pause)
            put(first, images[first : first + 10], np.arange(first, first + 10))

    return fill


@pytest.fixture
def cache(tmp_path) -> Cache:
    return open_cache(str(tmp_path / "cache"), 1.0)


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix in (".pixels", ".part"))


def refuse(put):
    raise AssertionError("it is in the cache")


def test_what_was_put_is_mapped_also_by_the_next_process_to_come(cache):
    for fill in (filler(), refuse):
        found = entry(cache, "k", SHAPE, "it", fill)
        rows = np.array([3, 59, 3, 0])
        images, labels = found.take(rows)
        assert np.array_equal(images, pixels_of(0)[rows]) and labels.tolist() == rows.tolist()
        found.check()
        found.close()
        assert images.flags.writeable and not found.images.flags.writeable


@pytest.mark.parametrize("shape", [SHAPE, (5, 1, 3, 3), (3, 3, 200, 200)])
def test_rows_are_read_whatever_their_size_and_no_rows_are_none(cache, shape):
    found = entry(cache, "k", shape, "it", lambda put: put(0, pixels_of(1, shape), np.arange(shape[0])))
    for rows in ([shape[0] - 1, 0, 0, 1], []):
        images, labels = found.take(np.array(rows, np.int64))
        assert np.array_equal(images, pixels_of(1, shape)[rows]) and labels.tolist() == rows


@pytest.mark.parametrize(("size", "row"), [(5000, 58), (60 * 192 + 100, 58), (1, 0)])
def test_a_file_that_is_cut_while_it_is_in_use_is_an_error_and_not_the_end_of_the_process(cache, size, row):
    found = entry(cache, "k", SHAPE, "it", filler())
    os.truncate(found.path, size)
    with pytest.raises(IntegrityError, match=r"k\.pixels: was cut"):
        found.take(np.array([row]))


def test_processes_of_a_node_share_one_decode(cache, tmp_path):
    def work(out):
        found = entry(cache, "k", SHAPE, "it", filler(log=tmp_path / "decodes", pause=0.03))
        out.put(bool(np.array_equal(found.images, pixels_of(0))))

    out = FORK.Queue()
    processes = [FORK.Process(target=work, args=(out,)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [out.get(timeout=60) for _ in processes] == [True] * 4
    for process in processes:
        process.join()
    assert (tmp_path / "decodes").read_text() == "x" and files(cache) == ["k.pixels"]


def test_a_writer_killed_at_any_moment_leaves_nothing_that_is_read(cache, tmp_path):
    """SIGKILL at moments spread over the whole of the work; each time the next process finds it whole or makes it."""
    rng = np.random.default_rng(1)
    began = time.monotonic()
    entry(cache, "timing", SHAPE, "it", filler(pause=0.01)).close()
    length, outcomes = time.monotonic() - began, set()
    for trial in range(16):
        process = FORK.Process(target=entry, args=(cache, f"k{trial}", SHAPE, "it", filler(trial, pause=0.01)))
        process.start()
        time.sleep(float(rng.uniform(0, 1.3 * length)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        outcomes.add(f"k{trial}.pixels" in files(cache))
        found = entry(cache, f"k{trial}", SHAPE, "it", filler(trial))
        found.check()
        assert np.array_equal(found.images, pixels_of(trial)) and found.labels.tolist() == list(range(60))
        found.close()
        assert not [name for name in files(cache) if f".k{trial}." in name]
    assert False in outcomes  # some were killed before the end


def test_what_a_dead_writer_of_another_data_set_left_is_cleared_and_a_living_ones_is_not(cache):
    def die(put):
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=entry, args=(cache, "dead", SHAPE, "it", die))
    process.start()
    process.join()
    assert any(name.startswith(".dead.") for name in files(cache))
    seen = []
    entry(cache, "outer", SHAPE, "it", lambda put: (_inner(cache, seen), filler()(put)))
    assert not any(name.startswith(".dead.") for name in files(cache))
    assert any(name.startswith(".outer.") for name in seen[0])


def _inner(cache, seen):
    entry(cache, "inner", SHAPE, "it", filler())
    seen.append(files(cache))


def test_an_error_while_filling_leaves_no_file(cache):
    def fill(put):
        filler()(lambda first, images, labels: put(first, images, labels) if first < 30 else 1 / 0)

    with pytest.raises(ZeroDivisionError):
        entry(cache, "k", SHAPE, "it", fill)
    assert files(cache) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "shape"])
def test_a_file_that_is_not_a_whole_entry_is_rewritten(cache, damage):
    path = cache.folder / "k.pixels"
    if damage == "shape":
        entry(cache, "k", (30, 3, 8, 16), "it", filler(shape=(30, 3, 8, 16))).close()
    else:
        entry(cache, "k", SHAPE, "it", filler()).close()
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-1], "empty": b"", "noise": b"?" * len(content)}[damage])
    found = entry(cache, "k", SHAPE, "it", filler(2))
    assert np.array_equal(found.images, pixels_of(2))


@pytest.mark.parametrize("offset", [0, 5000, 60 * 192 + 8])
def test_a_flipped_byte_is_found_by_check_and_the_file_goes(cache, offset):
    found = entry(cache, "k", SHAPE, "it", filler())
    with found.path.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 4]))
    with pytest.raises(IntegrityError, match=r"rows \d+\.\.\d+ .*run the same command again"):
        found.check()
    assert files(cache) == []


def size_of(entries: float) -> float:
    """GiB of so many entries, with room for their trailers."""
    return entries * (60 * 192 + 60 * 8 + 1500) / 2**30


def test_the_least_recently_used_entries_that_nobody_maps_make_room(tmp_path):
    cache = open_cache(str(tmp_path), size_of(3))
    held = entry(cache, "held", SHAPE, "it", filler())
    for key in ("old", "new"):
        entry(cache, key, SHAPE, "it", filler()).close()
    for age, key in enumerate(("new", "old", "held")):
        os.utime(cache.folder / f"{key}.pixels", (1e9 - age, 1e9 - age))
    entry(cache, "next", SHAPE, "it", filler()).close()
    assert files(cache) == ["held.pixels", "new.pixels", "next.pixels"]
    assert np.array_equal(held.images, pixels_of(0))


def test_using_an_entry_makes_it_recent(tmp_path):
    cache = open_cache(str(tmp_path), size_of(2))
    for age, key in enumerate("ab"):
        entry(cache, key, SHAPE, "it", filler()).close()
        os.utime(cache.folder / f"{key}.pixels", (1e9 + age, 1e9 + age))
    entry(cache, "a", SHAPE, "it", refuse).close()
    entry(cache, "c", SHAPE, "it", filler()).close()
    assert files(cache) == ["a.pixels", "c.pixels"]


def test_a_cache_full_of_entries_in_use_says_so(tmp_path):
    cache = open_cache(str(tmp_path), size_of(1.5))
    kept = entry(cache, "a", SHAPE, "it", filler())
    with pytest.raises(InputError, match=r"in use; it needs .*EDM_RAY_CACHE_GIB"):
        entry(cache, "b", SHAPE, "it", filler())
    assert files(cache) == ["a.pixels"]
    kept.close()
    entry(cache, "b", SHAPE, "it", filler())
    assert files(cache) == ["b.pixels"]


def test_what_is_larger_than_the_cache_is_refused_with_both_ways_out(tmp_path):
    with pytest.raises(InputError, match=r"set.*GiB decoded.*EDM_RAY_CACHE_GIB.*blocks"):
        entry(open_cache(str(tmp_path), size_of(0.5)), "k", SHAPE, "the set", filler())


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_names_the_folder_the_sizes_and_the_fix(cache, monkeypatch, call):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=rf"{cache.folder}.*the set.*GiB are needed.*free.*EDM_RAY_CACHE"):
        entry(cache, "k", SHAPE, "the set", filler())
    monkeypatch.undo()
    assert files(cache) == []


def test_who_waits_for_a_writer_that_is_stuck_gives_up_and_names_it(cache, monkeypatch):
    process = FORK.Process(target=entry, args=(cache, "k", SHAPE, "it", lambda put: time.sleep(60)))
    process.start()
    try:
        while not files(cache):
            time.sleep(0.01)
        monkeypatch.setattr(caching, "STALL_S", 0.2)
        with pytest.raises(InputError, match=r"another process of this node holds \.k\.lock"):
            entry(cache, "k", SHAPE, "it", filler())
    finally:
        process.kill()
        process.join()


def test_where_the_cache_is_and_how_large_it_may_be(tmp_path, monkeypatch):
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "said"))
    monkeypatch.setenv("EDM_RAY_CACHE_GIB", "2.5")
    assert open_cache() == Cache(folder=tmp_path / "said", limit=int(2.5 * 2**30))
    assert open_cache(str(tmp_path / "other"), 1).folder == tmp_path / "other"
    monkeypatch.delenv("EDM_RAY_CACHE")
    assert open_cache().folder == Path.home() / ".cache" / "edm_ray"
    for wrong in ("", "many", "-1", "0", "inf"):
        monkeypatch.setenv("EDM_RAY_CACHE_GIB", wrong)
        with pytest.raises(InputError, match="EDM_RAY_CACHE_GIB"):
            open_cache()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="EDM_RAY_CACHE"):
        open_cache(str(tmp_path / "file" / "below"), 1)
