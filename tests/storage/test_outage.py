"""Storage that is away for a while is outlived, by time; storage that was never there is given up at once."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch

from edm_ray.cli import main
from edm_ray.errors import InputError
from edm_ray.storage import s3, uris
from edm_ray.storage.s3 import StorageError
from edm_ray.training import metrics
from edm_ray.training.metrics import MetricsLog, read_metrics
from tests.storage.proxies import proxied


@pytest.fixture
def faults(server, monkeypatch):
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(s3, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setenv(s3.PATIENCE, "60")
    with proxied(server) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield faults


def _away(faults, seconds: float) -> threading.Timer:
    """503 to everything for so long."""
    faults.busy = 10**9
    timer = threading.Timer(seconds, lambda: setattr(faults, "busy", 0))
    timer.start()
    return timer


def test_storage_that_was_there_is_outlived_and_it_is_said_once(faults, caplog):
    uris.write_bytes("s3://bucket/x", b"before")
    caplog.clear()
    _away(faults, 3)
    began = time.monotonic()
    uris.write_bytes("s3://bucket/x", b"after")
    assert time.monotonic() - began >= 2.5
    assert uris.read_bytes("s3://bucket/x") == b"after"
    said = [record for record in caplog.records if "trying again" in record.message]
    assert len(said) == 1 and "for up to 60 s more" in said[0].message
    assert len(faults.seen) > s3.TRIES + 5, "by time, not by tries"


def test_storage_that_stays_away_ends_in_time(faults, monkeypatch):
    uris.write_bytes("s3://bucket/x", b"before")
    monkeypatch.setenv(s3.PATIENCE, "2")
    faults.busy = 10**9
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"failed \d+ times in \d s: .*SlowDown"):
        uris.read_bytes("s3://bucket/x")
    assert 2 <= time.monotonic() - began < 10


def test_an_endpoint_that_never_answered_is_given_up_after_a_few_tries(monkeypatch):
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv(s3.PATIENCE, "600")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(StorageError, match="nothing answers at endpoint"):
        uris.read_bytes("s3://bucket/x")
    assert time.monotonic() - began < 30


def test_by_default_it_is_ten_minutes(monkeypatch):
    monkeypatch.delenv(s3.PATIENCE)
    assert s3.outlive_s() == 600.0


@pytest.mark.parametrize("code", ["ExpiredToken", "TokenRefreshRequired"])
def test_expired_credentials_are_not_called_a_missing_permission(code, monkeypatch):
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 403 if code != "ExpiredToken" else 400}}

    class Expired:
        def get_object(self, **_):
            raise ClientError(answer, "GetObject")

    monkeypatch.setattr(s3, "client", lambda: Expired())
    with pytest.raises(InputError, match=rf"credentials have expired \({code}\); renew them") as caught:
        uris.read_bytes("s3://bucket/x")
    assert "lack" not in str(caught.value)


def test_rows_of_metrics_wait_while_storage_is_away_and_come_before_the_next_checkpoint(faults, caplog):
    log = MetricsLog("s3://bucket/run", 0, "r")
    log.append({"nimg": 1})
    faults.busy = 10**9
    began = time.monotonic()
    for nimg in (2, 3):
        log.append({"nimg": nimg})
    assert time.monotonic() - began < 20 and log.behind
    assert len([record for record in caplog.records if "training continues" in record.message]) == 1
    _away(faults, 1)
    log.flush()
    assert [row["nimg"] for row in read_metrics("s3://bucket/run")] == [1, 2, 3] and not log.behind


def test_a_row_that_comes_while_the_rows_are_written_is_written_too(tmp_path, monkeypatch):
    log, began, go_on = MetricsLog(str(tmp_path), 0, "r"), threading.Event(), threading.Event()
    write = metrics.write_metrics

    def slow(run_uri, rows):
        began.set()
        assert go_on.wait(30)
        write(run_uri, rows)

    monkeypatch.setattr(metrics, "write_metrics", slow)
    log.rows.append({"nimg": 1, "run": "r"})
    log.behind = True
    flushing = threading.Thread(target=log.flush)
    flushing.start()
    assert began.wait(30)
    log.append({"nimg": 2})  # does not wait for the other
    go_on.set()
    flushing.join()
    assert [row["nimg"] for row in read_metrics(str(tmp_path))] == [1, 2]


SETTINGS = ["batch_size=24", "tick_kimg=0.048", "checkpoint_kimg=0.096"]


@pytest.mark.slow
def test_a_run_outlives_storage_and_has_the_bits_of_a_calm_one(faults, digits_dir):
    words = ["train", "--data", str(digits_dir / "train"), "--preset", "tiny", "--workers", "0"]
    settings = ["--set", *SETTINGS, "total_kimg=0.48"]
    assert main([*words, "--out", "s3://bucket/calm", *settings]) == 0
    faults.where = lambda method, path: "struck" in path

    def strike() -> None:
        """At the first checkpoint's first file."""
        while not any(method == "PUT" and "struck/checkpoints" in path for method, path, _ in faults.seen):
            time.sleep(0.01)
        _away(faults, 3)

    thread = threading.Thread(target=strike)
    thread.start()
    assert main([*words, "--out", "s3://bucket/struck", *settings]) == 0
    thread.join()
    clocks = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}
    calm, struck = (
        [{key: value for key, value in row.items() if key not in clocks} for row in read_metrics(f"s3://bucket/{name}")]
        for name in ("calm", "struck")
    )
    assert calm == struck and len(calm) == 10
    weights = [uris.read_bytes(f"s3://bucket/{name}/model/model.safetensors") for name in ("calm", "struck")]
    assert weights[0] == weights[1]


def test_a_run_whose_storage_stays_away_ends_in_a_line_and_resumes(faults, digits_dir, monkeypatch, capsys):
    monkeypatch.setenv(s3.PATIENCE, "2")
    run = "s3://bucket/ended"
    words = ["train", "--data", str(digits_dir / "train"), "--preset", "tiny", "--workers", "0", "--out", run]
    faults.where = lambda method, path: "ended" in path

    def strike() -> None:
        while not uris.exists(f"{run}/checkpoints/nimg-000000000096/manifest.json"):
            time.sleep(0.05)
        faults.busy = 10**9

    thread = threading.Thread(target=strike)
    thread.start()
    assert main([*words, "--set", *SETTINGS, "total_kimg=960"]) == 1
    thread.join()
    said = capsys.readouterr().err
    assert "Traceback" not in said and "the same command resumes" in said and "An error occurred" in said
    faults.busy = 0
    last = json.loads(uris.read_bytes(f"{run}/run.json"))["identity"]
    assert last and torch.isfinite(torch.tensor(read_metrics(run)[-1]["loss"]))
