"""Data larger than the cache: read block by block, from a cache that never exceeds its limit."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edm_ray.data import stream as streaming
from edm_ray.data.blocks import BlockOrder
from edm_ray.data.eviction import _files, open_cache
from edm_ray.data.order import rank_positions, shares
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError, IntegrityError
from tests.data.readers import make_dataset, shard_path

ROWS, SHARDS, LANES = 480, 24, 4
ONE = ROWS // SHARDS * (192 + 8) + 600  # bytes of a cached shard, with room for its trailer


@pytest.fixture
def data(tmp_path):
    return make_dataset(tmp_path / "d", rows=ROWS, shards=SHARDS)


def stream_of(data, tmp_path, shards=12, **more):
    cache = open_cache(tmp_path / "cache", more.pop("cache_gib", shards * ONE / 2**30))
    return open_reader(data[0], cache=cache, **{"order": "blocks", "lanes": LANES, "block_shards": 1, **more})


@pytest.fixture
def decodes(monkeypatch):
    """Names of the shards that were decoded."""
    names, original = [], streaming.read_verified
    monkeypatch.setattr(streaming, "read_verified", lambda d, s: names.append(s.name) or original(d, s))
    return names


@pytest.mark.parametrize("xflip", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_an_epoch_through_a_small_cache_is_the_epoch_of_the_order(data, tmp_path, monkeypatch, xflip, ahead):
    monkeypatch.setattr(streaming, "IDLE_TAKES", 2)
    dataset, images, labels = data
    order = BlockOrder(tuple(shard.rows for shard in dataset.shards), LANES, xflip, 1)
    parts, largest = list(shares(0, order.samples, 24, 0, 1, LANES)), 0
    with stream_of(data, tmp_path, xflip=xflip) as reader:
        if ahead:
            reader.follow(iter(parts), 5)
        for part in parts:
            rows, mirrored = order.locate(part, 5)
            expected = np.where(mirrored[:, None, None, None] == 1, images[rows][..., ::-1], images[rows])
            got, told = reader.at(part, 5)
            assert np.array_equal(got.numpy(), expected) and np.array_equal(told.numpy(), labels[rows])
            largest = max(
                largest, sum(size.st_size for size in _files(open_cache(str(tmp_path / "cache"), 1)).values())
            )
    assert 0 < largest <= 12 * ONE + 1000 < SHARDS * ONE  # the newest trailer may be on top


def test_a_shard_is_decoded_about_once_an_epoch(data, tmp_path, monkeypatch, decodes):
    monkeypatch.setattr(streaming, "IDLE_TAKES", 2)
    with stream_of(data, tmp_path) as reader:
        for part in shares(0, ROWS, 24, 0, 1, LANES):
            reader.at(part, 0)
    assert set(decodes) == {shard.name for shard in data[0].shards} and len(decodes) <= SHARDS + LANES


def test_of_two_ranks_each_reads_its_share(data, tmp_path, decodes):
    counts = []
    for rank in range(2):
        decodes.clear()
        with stream_of(data, tmp_path / str(rank), shards=SHARDS) as reader:
            for part in shares(0, ROWS, 24, rank, 2, LANES):
                reader.at(part, 0)
        counts.append(len(decodes))
    assert max(counts) <= SHARDS // 2 + LANES // 2 and sum(counts) <= SHARDS + LANES


def test_two_processes_of_a_node_share_decoded_shards(data, tmp_path):
    log = tmp_path / "decodes"

    def work(seed):
        original = streaming.read_verified

        def note(dataset, shard):
            with log.open("a") as handle:
                handle.write(shard.name + "\n")
            return original(dataset, shard)

        streaming.read_verified = note
        with stream_of(data, tmp_path, shards=SHARDS) as reader:
            for first in range(0, ROWS, 40):
                reader.at(np.arange(first, first + 40, dtype=np.int64), seed)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(seed,)) for seed in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == sorted(shard.name for shard in data[0].shards)


@pytest.mark.parametrize("shards", [8, 5])
def test_processes_in_step_share_a_cache_that_holds_little_more_than_their_batches(data, tmp_path, shards):
    """As DDP workers of one node: none starts a step before all have read theirs, so one that waits for room which
    others keep for later would wait for ever. A lane's batch lies in one or two shards."""
    dataset, images, _ = data
    order = BlockOrder(tuple(shard.rows for shard in dataset.shards), LANES, block_shards=1)
    fork = multiprocessing.get_context("fork")
    step, found = fork.Barrier(4), fork.Queue()

    def work(rank):
        parts = list(shares(0, 2 * ROWS, 24, rank, 4, LANES))
        try:
            with stream_of(data, tmp_path, shards=shards) as reader:
                reader.follow(iter(parts), 0)
                for part in parts:
                    assert np.array_equal(reader.at(part, 0)[0].numpy(), images[order.locate(part, 0)[0]])
                    step.wait(60)
            found.put("")
        except Exception as error:
            step.abort()
            found.put(repr(error))

    processes = [fork.Process(target=work, args=(rank,)) for rank in range(4)]
    for process in processes:
        process.start()
    assert [found.get(timeout=120) for _ in processes] == [""] * 4
    for process in processes:
        process.join()


def test_what_others_hold_for_good_is_an_error_in_the_end(data, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "ROOM_WAIT_S", 0.3)
    batch = np.arange(24, dtype=np.int64)
    with stream_of(data, tmp_path, shards=LANES + 1) as first, stream_of(data, tmp_path, shards=LANES + 1) as second:
        first.at(batch, 0)
        monkeypatch.setattr(first._source, "_let_go", list)
        with pytest.raises(InputError, match="in use"):
            second.at(batch + 7 * ROWS, 0)


def test_resuming_reads_only_what_is_needed_from_there_on(data, tmp_path, decodes):
    with stream_of(data, tmp_path) as reader:
        reader.at(rank_positions(ROWS * 1000 + 240, 24, 0, 1, LANES), 0)
    assert len(decodes) <= 2 * LANES


@pytest.mark.parametrize("how", ["vanish", "truncate", "flip", "replace"])
def test_a_shard_damaged_under_a_running_reader_is_named(data, tmp_path, how):
    dataset = data[0]
    everything = np.arange(ROWS, dtype=np.int64)
    for ahead in (False, True):
        with stream_of(data, tmp_path / f"{how}{ahead}", shards=SHARDS) as reader:
            reader.at(everything[:24], 0)
            kept = {number: shard_path(dataset, number).read_bytes() for number in range(SHARDS)}
            for number in range(SHARDS):
                path, content = shard_path(dataset, number), bytearray(kept[number])
                content[len(content) // 2] ^= 1
                if how == "vanish":
                    path.unlink()
                else:
                    path.write_bytes(
                        {"truncate": content[:-9], "flip": content, "replace": kept[(number + 1) % SHARDS]}[how]
                    )
            if ahead:
                reader.follow(iter([everything]), 0)
            began = time.monotonic()
            with pytest.raises(InputError if how == "vanish" else IntegrityError, match=r"train-000\d\d-of-00024"):
                reader.at(everything, 0)
            assert time.monotonic() - began < 5
        for number, content in kept.items():
            shard_path(dataset, number).write_bytes(content)


def test_skipped_shards_are_counted_and_change_no_other_row(data, tmp_path):
    dataset, images, _ = data
    lost = [3, 4, 23]
    for number in lost:
        shard_path(dataset, number).unlink()
    order = BlockOrder(tuple(shard.rows for shard in dataset.shards), LANES, block_shards=1)
    positions = np.arange(ROWS, dtype=np.int64)
    rows = order.locate(positions, 0)[0]
    instead = {3: 5, 4: 5, 23: 0}
    with stream_of(data, tmp_path, shards=SHARDS, on_damage="skip") as reader:
        got = reader.at(positions, 0)[0].numpy()
        assert sorted(reader.skipped.shards) == [dataset.shards[n].name for n in lost] and reader.skipped.rows == 60
    taken = np.array([instead.get(row // 20, row // 20) * 20 + row % 20 for row in rows])
    assert np.array_equal(got, images[taken])


def test_a_cached_shard_with_a_flipped_byte_is_decoded_again(data, tmp_path):
    _, images, _ = data
    for flipped in (False, True):
        with stream_of(data, tmp_path, shards=SHARDS) as reader:
            positions = np.arange(ROWS, dtype=np.int64)
            rows = reader._locate(positions, 0).rows
            assert np.array_equal(reader.at(positions, 0)[0].numpy(), images[rows])
        for path in [] if flipped else sorted((tmp_path / "cache").glob("*.pixels"))[:3]:
            content = bytearray(path.read_bytes())
            content[77] ^= 8
            path.write_bytes(bytes(content))


def test_a_cache_too_small_for_what_is_in_use_says_so(data, tmp_path):
    with stream_of(data, tmp_path, shards=2) as reader, pytest.raises(InputError, match="EDM_RAY_CACHE_GIB"):
        reader.at(np.arange(ROWS, dtype=np.int64), 0)


def test_there_is_no_array_of_all_images_and_names_of_orders_are_checked(data, tmp_path):
    with stream_of(data, tmp_path) as reader, pytest.raises(InputError, match="order='rows'"):
        _ = reader.images
    with pytest.raises(InputError, match="rows, blocks"):
        open_reader(data[0], order="random")


def test_closing_ends_all_threads(data, tmp_path):
    before = threading.active_count()
    for served in range(3):
        reader = stream_of(data, tmp_path)
        reader.follow(shares(0, 10**9, 24, 0, 1, LANES), 0)
        for part in list(shares(0, 24 * served, 24, 0, 1, LANES)):
            reader.at(part, 0)
        reader.close()
        assert threading.active_count() == before
    assert not list(Path(tmp_path / "cache").glob(".*.part"))
