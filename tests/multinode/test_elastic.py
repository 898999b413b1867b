"""`edm-ray train --workers 1:2` on Ray nodes that go and come: it shrinks, it grows, and it heeds Ray's notice.

A head without CPUs and nodes with one CPU each, so two workers are on two nodes by arithmetic. Minutes on two cores
(`make test-slow`). The times that docs/training.md states are logged by these tests (`--log-cli-level=INFO`).
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store
from tests.jobs.heads import RAY, Head, add_node, descendants, lose, running_head
from tests.multinode.test_nodes import node_with, weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]
logger = logging.getLogger(__name__)
# Steps of a few tenths of a second, two a tick.
STEPS = ["--set", "batch_size=480", "tick_kimg=0.96", "denoiser.network.dropout=0"]


@pytest.fixture
def cluster(tmp_path):
    """A head without CPUs; the tests add nodes."""
    with running_head(tmp_path / "cluster", cpus=0) as head:
        yield head


def _command(data: Path, out: Path, kimg: float, *how: str, checkpoint_kimg: float = 0.96) -> list[str]:
    command = ["train", "--data", str(data / "train"), "--out", str(out), "--preset", "tiny", *how, *STEPS]
    return [*command, f"total_kimg={kimg}", f"checkpoint_kimg={checkpoint_kimg}"]


class Run:
    """A driver and what it has written so far."""

    def __init__(self, cluster: Head, data: Path, out: Path, kimg: float, **settings: float) -> None:
        self.out, self.log = out, cluster.log.with_name("driver.log")
        self.driver = cluster.start(*_command(data, out, kimg, "--workers", "1:2", **settings))

    def images(self) -> list[int]:
        return [row["nimg"] for row in read_metrics(str(self.out))]

    def wait(self, what: str, happened: Callable[[], bool], seconds: float = 240) -> float:
        """Seconds until it happened; the driver must be running."""
        began = time.monotonic()
        while not happened():
            assert self.driver.poll() is None, self.log.read_text()
            assert time.monotonic() - began < seconds, f"{what}: not in {seconds} s\n{self.log.read_text()}"
            time.sleep(0.05)
        return time.monotonic() - began

    def end(self, kimg: float) -> None:
        assert self.driver.wait(300) == 0, self.log.read_text()
        assert self.images() == [*range(960, int(kimg * 1000) + 1, 960)]


def _workers(cluster: Head) -> int:
    """Processes that train, on all nodes that live."""
    nodes = [node for node in cluster.extra if node.poll() is None]
    return sum("RayTrainWorker" in title for node in nodes for title in descendants(node.pid).values())


def test_a_run_that_loses_a_node_takes_its_next_step_within_40_seconds_with_one_worker(cluster, digits_dir, tmp_path):
    for _ in range(2):
        add_node(cluster, 1)
    run = Run(cluster, digits_dir, tmp_path / "run", 19.2)
    try:
        run.wait("three ticks", lambda: len(run.images()) >= 3)
        lose(node_with(cluster, "RayTrainWorker"))
        died, before = time.monotonic(), run.images()[-1]
        # A tick that had ended already may be written yet; the one after it is of the new group.
        run.wait("the next step", lambda: run.images()[-1] > before + 960)
        seconds = time.monotonic() - died
        logger.info("death of a node -> next step: %.1f s", seconds)
        run.end(19.2)
    finally:
        run.driver.kill()
    assert seconds < 40
    assert main(_command(digits_dir, tmp_path / "calm", 19.2, "--no-ray")) == 0
    calm, struck = weights(tmp_path / "calm"), weights(run.out)
    assert np.linalg.norm(calm - struck) / np.linalg.norm(calm) < 1e-3


def test_a_run_grows_when_a_node_comes_and_loses_no_step(cluster, digits_dir, tmp_path):
    add_node(cluster, 1)
    run = Run(cluster, digits_dir, tmp_path / "run", 96)
    try:
        run.wait("a tick", lambda: len(run.images()) >= 1)
        assert _workers(cluster) == 1
        add_node(cluster, 1)
        came = time.monotonic()
        run.wait("two workers", lambda: _workers(cluster) == 2)
        grown = run.images()[-1]
        run.wait("the next step", lambda: run.images()[-1] > grown)
        logger.info("a node comes -> next step of the larger group: %.1f s", time.monotonic() - came)
        run.end(96)
    finally:
        run.driver.kill()
    # Where the smaller group ended, the larger one began: nothing was done twice.
    stopped = int(run.log.read_text().split("stopped at ", 1)[1].split(" images", 1)[0].replace(",", ""))
    assert stopped % 480 == 0 and "room for more than 1 workers" in run.log.read_text()
    assert stopped // 960 * 960 <= grown


def test_a_node_that_ray_is_to_drain_makes_the_run_write_a_checkpoint_at_once(cluster, digits_dir, tmp_path):
    for _ in range(2):
        add_node(cluster, 1)
    # Without the notice there would be one checkpoint, at the end.
    run = Run(cluster, digits_dir, tmp_path / "run", 480, checkpoint_kimg=480)
    store = checkpoint_store(str(run.out))
    try:
        run.wait("a tick", lambda: len(run.images()) >= 1)
        assert not store.committed()
        _drain(cluster)
        told = time.monotonic()
        run.wait("a checkpoint", lambda: bool(store.committed()), 30)
        logger.info("notice -> checkpoint: %.1f s", time.monotonic() - told)
    finally:
        run.driver.kill()


def _drain(cluster: Head) -> None:
    """What an autoscaler does when a spot machine is about to be taken: its node is drained, with a deadline."""
    nodes = cluster.get("/api/v0/nodes?detail=0")["data"]["result"]["result"]
    worker = next(node["node_id"] for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"])
    command = [RAY, "drain-node", f"--address={cluster.host}:{cluster.gcs_port}", f"--node-id={worker}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60"]
    subprocess.run(command, env=cluster.environment, check=True, timeout=60)
