"""`edm-ray train --workers 1:2` on Ray nodes that go and come: it shrinks, it grows, and it heeds Ray's notice.

A head without CPUs and nodes with one CPU each, so two workers are on two nodes by arithmetic. Minutes on two cores
(`make test-slow`). Each test prints the times that docs/training.md states (`pytest -s`).
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from edm_ray.training.run import read_metrics
from tests.jobs.heads import Head, add_node, lose, running_head
from tests.multinode.test_nodes import node_with

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Long enough to lose and gain a node in its middle: a tick takes about half a second, a checkpoint is made each tick.
LONG = ["--set", "total_kimg=72", "tick_kimg=0.48", "checkpoint_kimg=0.48"]


@pytest.fixture
def cluster(tmp_path):
    """A head without CPUs; the tests add nodes."""
    with running_head(tmp_path / "cluster", cpus=0) as head:
        yield head


def _start(cluster: Head, data: Path, out: Path, *more: str) -> subprocess.Popen:
    return cluster.start(
        "train", "--data", str(data / "train"), "--out", str(out), "--preset", "tiny", "--workers", "1:2", *LONG, *more
    )


def _rows(run: Path) -> int:
    return len(read_metrics(str(run)))


def _wait(what: str, happened, driver: subprocess.Popen, log: Path, seconds: float = 240) -> float:
    """Seconds until it happened; the driver must be running."""
    began = time.monotonic()
    while not happened():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s\n{log.read_text()}"
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_run_that_loses_a_node_goes_on_with_one_worker_within_40_seconds(cluster, digits_dir, tmp_path):
    for _ in range(2):
        add_node(cluster, 1)
    run, log = tmp_path / "run", cluster.log.with_name("driver.log")
    driver = _start(cluster, digits_dir, run)
    try:
        _wait("first rows", lambda: _rows(run) >= 3, driver, log)
        lose(node_with(cluster, "RayTrainWorker"))
        time.sleep(1)
        before = read_metrics(str(run))[-1]["nimg"]
        seconds = _wait("next step", lambda: read_metrics(str(run))[-1]["nimg"] > before, driver, log)
        print(f"node's death -> next row of metrics: {seconds + 1:.1f} s")
    finally:
        driver.kill()
