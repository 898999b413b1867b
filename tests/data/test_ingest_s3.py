"""The reader over S3, with a line that fails: what it gives is right, or the error names the shard; it never hangs."""

from __future__ import annotations

import time
from pathlib import Path

import boto3
import numpy as np
import pytest

from edm_ray.data import reader as reading
from edm_ray.data.blocks import BlockOrder
from edm_ray.data.eviction import open_cache
from edm_ray.data.manifest import open_dataset
from edm_ray.data.order import shares
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import s3
from edm_ray.storage.uris import StorageError
from tests.data.readers import make_dataset
from tests.storage.proxies import proxied, s3_server

URI, ROWS, SHARDS = "s3://bucket/set", 60, 6


@pytest.fixture(scope="module")
def server():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def stored(server, tmp_path, monkeypatch):
    """(faults, images, labels): the data set lies at URI; the way there leads through the proxy."""
    dataset, images, labels = make_dataset(tmp_path / "d", rows=ROWS, shards=SHARDS)
    client = boto3.client("s3", endpoint_url=server)
    for path in Path(dataset.uri).iterdir():
        client.put_object(Bucket="bucket", Key=f"set/{path.name}", Body=path.read_bytes())
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "cache"))
    with proxied(server) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        faults.where = lambda method, path: ".parquet" in path
        yield faults, images, labels


def shard_gets(faults):
    return [path for method, path, _ in faults.seen if method == "GET" and ".parquet" in path]


def test_a_data_set_on_s3_is_read_once_and_then_from_the_cache(stored):
    faults, images, labels = stored
    for _ in range(2):
        with open_reader(open_dataset(URI)) as reader:
            assert np.array_equal(reader.images, images) and np.array_equal(reader.labels, labels)
    assert len(shard_gets(faults)) == SHARDS


@pytest.mark.parametrize("order", ["rows", "blocks"])
@pytest.mark.parametrize("fault", ["busy", "cut"])
def test_throttled_and_cut_reads_give_the_same_images(stored, fault, order):
    faults, images, _ = stored
    setattr(faults, fault, 4)
    positions = np.arange(ROWS, dtype=np.int64)
    with open_reader(open_dataset(URI), order=order, lanes=2) as reader:
        rows = reader._locate(positions, 0).rows
        assert np.array_equal(reader.at(positions, 0)[0].numpy(), images[rows])
    assert getattr(faults, fault) == 0 and len(shard_gets(faults)) == SHARDS + 4


@pytest.mark.parametrize("order", ["rows", "blocks"])
@pytest.mark.parametrize("on_damage", ["raise", "skip"])
def test_a_missing_permission_stops_at_once_under_either_policy(stored, order, on_damage):
    faults, _, _ = stored
    faults.denied = 1000
    began = time.monotonic()
    told = pytest.raises(InputError, match=r"s3://bucket/set/train-.*parquet: access denied.*s3:GetObject")
    with told, open_reader(open_dataset(URI), order=order, lanes=2, on_damage=on_damage) as reader:
        reader.follow(shares(0, ROWS, 12, 0, 1, 2), 0)
        reader.at(np.arange(12, dtype=np.int64), 0)
    assert time.monotonic() - began < 5 and len(shard_gets(faults)) <= SHARDS


def test_storage_that_never_answers_well_ends_in_an_error(stored, monkeypatch):
    faults, _, _ = stored
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.001)
    faults.busy = 10**6
    with pytest.raises(StorageError, match=r"train-.*SlowDown"):
        open_reader(open_dataset(URI))


def test_bytes_on_the_wire_are_those_that_are_stated(stored, tmp_path):
    """Nodes of one lane each, with caches of their own, read an epoch block by block: every shard once, those on the
    border of two lanes twice. What `BlockOrder` computes, and `edm-ray inspect --nodes` says, is what is fetched."""
    faults, _, _ = stored
    dataset = open_dataset(URI)
    sizes = [dataset.files[shard.name]["bytes"] for shard in dataset.shards]
    for nodes in (2, 4):
        order = BlockOrder(tuple(shard.rows for shard in dataset.shards), nodes)
        said, fetched = order.amplification(sizes, 0, 0, nodes), []
        for rank in range(nodes):
            faults.seen.clear()
            with open_reader(
                dataset, order="blocks", lanes=nodes, cache=open_cache(tmp_path / f"{nodes}-{rank}")
            ) as reader:
                for part in shares(0, ROWS, 12, rank, nodes, nodes):
                    reader.at(part, 0)
            fetched.append(sum(dataset.files[path.split("/")[-1]]["bytes"] for path in shard_gets(faults)))
        assert fetched == [round(times * sum(sizes) / nodes) for times in said]
        assert sum(fetched) == sum(sizes) if nodes == 2 else sum(fetched) > sum(sizes)


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_an_object_that_changes_under_a_running_reader_is_named(stored, server, change):
    client, name = boto3.client("s3", endpoint_url=server), "train-00003-of-00006.parquet"
    dataset = open_dataset(URI)
    with open_reader(dataset, order="blocks", lanes=1, block_shards=1) as reader:
        sequence = reader._locate(np.arange(ROWS, dtype=np.int64), 0).rows // 10
        first = int(np.argmax(sequence == 3))  # the first position in shard 3
        if first == 0:
            first = int(np.argmax(sequence != 3))
            name = dataset.shards[sequence[first]].name
        reader.at(np.arange(first, dtype=np.int64), 0)
        if change == "deleted":
            client.delete_object(Bucket="bucket", Key=f"set/{name}")
        else:
            client.put_object(Bucket="bucket", Key=f"set/{name}", Body=b"another object")
        wanted = IntegrityError if change == "replaced" else InputError
        with pytest.raises(wanted, match=name):
            reader.at(np.arange(first, ROWS, dtype=np.int64), 0)
