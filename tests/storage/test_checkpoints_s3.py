"""What builds on storage, over S3 with a line that fails: checkpoints."""

from __future__ import annotations

import boto3
import pytest
import torch

from edm_ray.errors import InputError
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.storage import s3
from tests.storage.proxies import proxied


@pytest.fixture
def faults(server, monkeypatch):
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.01)
    with proxied(server) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield faults


def state(value):
    return {"model": {"w": torch.full((3000,), float(value))}}


def test_checkpoints_survive_throttling_and_cut_lines(faults):
    store = CheckpointStore("s3://bucket/run", keep=2)
    for seen in (1, 2, 3):
        faults.busy, faults.cut = 2, 2
        store.save(seen, state(seen), {"seed": 0})
        latest = store.latest()
        assert latest.images_seen == seen and torch.equal(latest.tensors["model"]["w"], state(seen)["model"]["w"])
    assert store.committed() == [2, 3]


def test_a_second_writer_of_a_whole_checkpoint_is_refused_and_a_damaged_one_is_replaced(faults, server):
    store = CheckpointStore("s3://bucket/other")
    store.save(1, state(1), {})
    store.save(1, state(1), {})
    with pytest.raises(InputError, match="committed there already"):
        store.save(1, state(2), {})
    assert float(store.load(1).tensors["model"]["w"][0]) == 1.0
    key = "other/nimg-000000000001/model.safetensors"
    boto3.client("s3", endpoint_url=server).put_object(Bucket="bucket", Key=key, Body=b"damaged")
    store.save(1, state(2), {})
    assert float(store.load(1).tensors["model"]["w"][0]) == 2.0


def test_a_checkpoint_that_may_not_be_written_says_so_and_does_not_exist(faults):
    store = CheckpointStore("s3://bucket/denied")
    faults.where = lambda method, path: method == "PUT" and "state.json" in path
    faults.denied = 1
    with pytest.raises(InputError, match=r"state\.json: access denied.*s3:PutObject"):
        store.save(1, state(1), {})
    assert store.committed() == [] and store.latest() is None
