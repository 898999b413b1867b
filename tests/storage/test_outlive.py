"""A local disk that is away or full for a while is outlived by time."""

from __future__ import annotations

import errno
import logging
import time
from types import MappingProxyType

import numpy as np
import pytest

from edm_ray.storage import artifacts, outlive, uris
from edm_ray.storage.outlive import outlived
from edm_ray.storage.s3 import PATIENCE, StorageError
from edm_ray.training.checkpoints import BackgroundWriter


class Disk:
    """Fails for so many seconds from the first write on."""

    def __init__(self, seconds: float, number: int = errno.EIO) -> None:
        self.seconds, self.number, self.calls, self.began = seconds, number, 0, 0.0

    def write(self, *_: object) -> None:
        self.calls += 1
        self.began = self.began or time.monotonic()
        if time.monotonic() - self.began < self.seconds:
            raise OSError(self.number, "not now", "/disk/file")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_a_disk_that_is_away_is_waited_for_and_it_is_said_once(monkeypatch, caplog, number):
    monkeypatch.setenv(PATIENCE, "60")
    disk = Disk(1.0, number)
    with caplog.at_level(logging.WARNING):
        outlived(disk.write, "x", first_wait_s=0.05)
    assert disk.calls > 4, "by time, not by tries"
    assert caplog.text.count("writing x failed") == 1 and "for up to 60 s more" in caplog.text


def test_a_disk_that_stays_away_ends_in_time_with_its_own_error(monkeypatch):
    monkeypatch.setenv(PATIENCE, "1")
    disk, began = Disk(3600), time.monotonic()
    with pytest.raises(OSError, match="not now"):
        outlived(disk.write, "x", first_wait_s=0.05)
    assert 1 <= time.monotonic() - began < 10


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), StorageError("asked long enough")])
def test_what_another_try_cannot_change_is_raised_at_once(monkeypatch, error):
    monkeypatch.setenv(PATIENCE, "600")
    calls = []

    def write() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        outlived(write, "x")
    assert len(calls) == 1


def test_a_checkpoint_outlives_a_disk_for_longer_than_four_tries(monkeypatch):
    monkeypatch.setenv(PATIENCE, "60")
    monkeypatch.setattr("edm_ray.training.checkpoints.FIRST_WAIT_S", 0.05)
    disk, writer = Disk(1.5), BackgroundWriter()
    writer.submit(lambda: disk.write)
    writer.close()
    assert disk.calls > 4


def test_a_chunk_is_written_when_the_disk_has_room_again(monkeypatch, tmp_path):
    """A worker's disk that fills: nothing is lost, and nothing is sampled again."""
    monkeypatch.setenv(PATIENCE, "60")
    monkeypatch.setattr(outlive, "LONGEST_WAIT_S", 0.05)
    disk, write = Disk(0.5, errno.ENOSPC), uris.write_bytes

    def full_at_first(path, content) -> None:
        disk.write()
        write(path, content)

    monkeypatch.setattr(uris, "write_bytes", full_at_first)

    class One:
        kind = "one"
        identity = MappingProxyType({"a": "1"})

    artifacts.write(str(tmp_path), One(), {"x": np.ones(3)})
    assert disk.calls > 1 and artifacts.is_stored(str(tmp_path), One())
