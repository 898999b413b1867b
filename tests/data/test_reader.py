"""The reader: the same images whatever serves them, checked, read ahead, and never a hang."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from edm_ray.data import fetch as fetching
from edm_ray.data import reader as reading
from edm_ray.data.cache import Entry
from edm_ray.data.eviction import open_cache
from edm_ray.data.order import sample_indices
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError, IntegrityError
from tests.data.readers import make_dataset, shard_path


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Nothing is small enough for memory; returns the cache's folder."""
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("xflip", [False, True])
@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_memory_and_cache_give_the_images_of_the_order(tmp_path, cached, monkeypatch, xflip, encoding):
    dataset, images, labels = make_dataset(tmp_path / "d", encoding=encoding)
    positions = np.arange(75, 95, dtype=np.int64)
    mirrored, rows = np.divmod(sample_indices(positions, 80 if xflip else 40, 7), 40)
    expected = np.where(mirrored[:, None, None, None] == 1, images[rows][..., ::-1], images[rows])
    for limit in (0, 1 << 20):
        monkeypatch.setattr(reading, "IN_MEMORY_BYTES", limit)
        with open_reader(dataset, xflip) as reader:
            got, told = reader.at(positions, 7)
            assert np.array_equal(got.numpy(), expected) and np.array_equal(told.numpy(), labels[rows])
            assert np.array_equal(reader.images, images) and np.array_equal(reader.labels, labels)
            assert (got.dtype, told.dtype) == (torch.uint8, torch.int64)


def test_a_data_set_of_a_few_mib_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "cache"))
    open_reader(make_dataset(tmp_path / "d")[0]).close()
    assert not (tmp_path / "cache").exists()


def test_a_second_reader_reads_no_shard(tmp_path, cached, monkeypatch):
    dataset, images, _ = make_dataset(tmp_path / "d")
    open_reader(dataset).close()
    monkeypatch.setattr(fetching, "read_verified", lambda *_: 1 / 0)
    assert np.array_equal(open_reader(dataset).images, images)


def test_a_data_set_with_other_content_has_another_place_in_the_cache(tmp_path, cached):
    for seed in (0, 1):
        dataset, images, _ = make_dataset(tmp_path / str(seed), seed=seed)
        assert np.array_equal(open_reader(dataset).images, images)
    assert len(list(cached.glob("*.pixels"))) == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_a_byte_of_the_cache_that_flips_is_never_served_in_silence(tmp_path, cached, monkeypatch, at_once):
    dataset, images, _ = make_dataset(tmp_path / "d")
    open_reader(dataset).close()
    path = next(cached.glob("*.pixels"))
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(bytes(content))
    if at_once:  # small: made anew
        assert np.array_equal(open_reader(dataset).images, images)
        return
    monkeypatch.setattr(reading, "CHECK_AT_ONCE_BYTES", 0)
    with open_reader(dataset) as reader, pytest.raises(IntegrityError, match="were changed on disk"):
        for _ in range(1000):
            reader.at(np.arange(4, dtype=np.int64), 0)
            time.sleep(0.005)
    assert np.array_equal(open_reader(dataset).images, images)


def damage_shard(dataset, number, how):
    path = shard_path(dataset, number)
    content = bytearray(path.read_bytes())
    if how == "vanish":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(bytes(content[:-20]))
    elif how == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    else:  # a sound shard of another data set
        path.write_bytes(shard_path(dataset, number + 1).read_bytes())


DAMAGE = ("vanish", "truncate", "flip", "replace")


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_damaged_shard_is_named_and_nothing_is_cached(tmp_path, cached, monkeypatch, how, limit):
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", limit)
    dataset, _, _ = make_dataset(tmp_path / "d")
    damage_shard(dataset, 2, how)
    with pytest.raises(InputError, match=dataset.shards[2].name):
        open_reader(dataset)
    assert not list(cached.glob("*.p*"))


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_skipped_shards_are_counted_and_named_and_change_no_other_row(tmp_path, cached, monkeypatch, how, limit):
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", limit)
    dataset, images, labels = make_dataset(tmp_path / "d")
    before = shard_path(dataset, 1).read_bytes()
    damage_shard(dataset, 1, how)
    with open_reader(dataset, on_damage="skip") as reader:
        assert reader.skipped.rows == 8 and list(reader.skipped.shards) == [dataset.shards[1].name]
        rows = np.r_[0:8, 16:24, 16:40]  # rows 8..15 are lost: those of the next shard stand there
        assert np.array_equal(reader.images, images[rows]) and np.array_equal(reader.labels, labels[rows])
    shard_path(dataset, 1).write_bytes(before)
    with open_reader(dataset) as reader:
        assert np.array_equal(reader.images, images) and not reader.skipped.shards


def test_when_every_shard_is_lost_there_is_nothing_to_skip_to(tmp_path):
    dataset, _, _ = make_dataset(tmp_path / "d")
    for number in range(5):
        damage_shard(dataset, number, "truncate")
    with pytest.raises(InputError, match=r"not one shard is whole; the first: .*truncated"):
        open_reader(dataset, on_damage="skip")
    with pytest.raises(InputError, match="raise, skip"):
        open_reader(dataset, on_damage="ignore")


def test_an_error_of_storage_is_not_taken_for_damage(tmp_path, monkeypatch):
    def refused(*_):
        raise InputError("s3://x: 403, s3:GetObject is missing")

    monkeypatch.setattr(fetching, "read_verified", refused)
    with pytest.raises(InputError, match="GetObject"):
        open_reader(make_dataset(tmp_path / "d")[0], on_damage="skip")


def test_shards_are_fetched_in_parallel_and_so_many_at_most(tmp_path, monkeypatch):
    dataset, images, _ = make_dataset(tmp_path / "d", shards=12)
    running, most, guard, original = 0, 0, threading.Lock(), fetching.read_verified

    def slow(*arguments):
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with guard:
            running -= 1
        return original(*arguments)

    monkeypatch.setattr(fetching, "read_verified", slow)
    assert np.array_equal(open_reader(dataset, threads=4).images, images)
    assert 2 <= most <= 4


def batches(count, size=8):
    made = (np.arange(i * size, (i + 1) * size, dtype=np.int64) for i in range(count))
    return list(made) if count < 1000 else made


def test_reading_ahead_changes_nothing(tmp_path):
    dataset, _, _ = make_dataset(tmp_path / "d")
    with open_reader(dataset, True) as plain, open_reader(dataset, True) as ahead:
        ahead.follow(batches(10), seed=3)
        for positions in [*batches(7), *batches(2), *batches(12)]:  # the second loop was not announced
            for a, b in zip(plain.at(positions, 3), ahead.at(positions, 3), strict=True):
                assert torch.equal(a, b)


def test_another_seed_than_the_announced_one_is_not_served_from_ahead(tmp_path):
    with open_reader(make_dataset(tmp_path / "d")[0]) as reader:
        plain = reader.at(batches(1)[0], 4)[0]
        reader.follow(batches(4), seed=3)
        assert torch.equal(reader.at(batches(1)[0], 4)[0], plain)


def test_reading_ahead_goes_so_far_and_no_further(tmp_path, monkeypatch):
    taken = []
    with open_reader(make_dataset(tmp_path / "d")[0]) as reader:
        take = reader._source.take
        monkeypatch.setattr(reader._source, "take", lambda rows: taken.append(rows) or take(rows))
        reader.follow(batches(50), seed=0, depth=2)
        time.sleep(0.2)
        assert 2 <= len(taken) <= 4


def test_the_order_is_computed_for_many_batches_at_once_and_no_further_ahead_than_that(tmp_path, monkeypatch):
    """Its cost is that of NumPy's calls, not of the positions."""
    computed, original = [], reading.sample_indices
    monkeypatch.setattr(reading, "sample_indices", lambda p, *more: computed.append(len(p)) or original(p, *more))
    with open_reader(make_dataset(tmp_path / "d")[0]) as reader:
        reader.follow(batches(10**6, 256), seed=0)
        served = [reader.at(positions, 0) for positions in batches(64, 256)]
        assert len(served) == 64 and set(computed) == {reading.LOCATED_AT_ONCE} and len(computed) <= 3


def test_an_error_in_the_thread_is_raised_where_the_batch_is_asked_for(tmp_path, monkeypatch):
    with open_reader(make_dataset(tmp_path / "d")[0]) as reader:
        monkeypatch.setattr(reader._source, "take", lambda rows: 1 / 0)
        reader.follow(batches(3), seed=0)
        began = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            reader.at(batches(1)[0], 0)
        assert time.monotonic() - began < 2


def test_announced_positions_may_fail_too(tmp_path):
    def failing():
        yield batches(1)[0]
        raise RuntimeError("no more positions")

    with open_reader(make_dataset(tmp_path / "d")[0]) as reader:
        reader.follow(failing(), seed=0)
        reader.at(batches(1)[0], 0)
        with pytest.raises(RuntimeError, match="no more positions"):
            reader.at(batches(2)[1], 0)


def test_closing_ends_the_threads_at_any_moment(tmp_path, cached, monkeypatch):
    monkeypatch.setattr(reading, "CHECK_AT_ONCE_BYTES", 0)
    dataset, _, _ = make_dataset(tmp_path / "d")
    before = threading.active_count()
    for served in range(4):
        reader = open_reader(dataset)
        reader.follow(batches(100), seed=0, depth=1)
        images = [reader.at(positions, 0)[0] for positions in batches(served)]
        reader.close()
        reader.close()
        assert threading.active_count() == before
        with pytest.raises(ValueError, match="closed"):
            reader.at(batches(1)[0], 0)
        assert all(len(image) == 8 for image in images)


def test_while_a_reader_is_open_its_entry_is_not_evicted(tmp_path, cached, monkeypatch):
    one, images, _ = make_dataset(tmp_path / "one", rows=400)
    two, _, _ = make_dataset(tmp_path / "two", rows=400, seed=1)
    gib = 1.5 * images.nbytes / 2**30
    first = open_reader(one, cache=open_cache(cache_gib=gib))
    assert isinstance(first._source, Entry)
    with pytest.raises(InputError, match="in use"):
        open_reader(two, cache=open_cache(cache_gib=gib))
    first.close()
    open_reader(two, cache=open_cache(cache_gib=gib)).close()
    assert [path.stem for path in cached.glob("*.pixels")] == [two.hash]


def test_batches_are_pinned_where_cuda_is_there(tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.dtype) or tensor)
    with open_reader(make_dataset(tmp_path / "d")[0]) as reader:
        reader.at(batches(1)[0], 0)
    assert pinned == [torch.uint8, torch.int64]
