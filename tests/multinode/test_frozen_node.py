"""A node that is frozen, not dead: SIGSTOP of its raylet and of all its workers. Its connections stay open."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edm_ray.models import open_model
from edm_ray.training.run import checkpoint_store
from tests.jobs.heads import add_node, descendants, running_head
from tests.multinode.test_nodes import node_with

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(1500)]


def _freeze(node: subprocess.Popen) -> None:
    for pid in [node.pid, *descendants(node.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def test_a_training_leaves_a_frozen_node_and_ends_with_the_same_bits(digits_dir, tmp_path, tmp_path_factory):
    """Ray's health checks find the node (fast ones here; 25 s by default); the group resumes on another."""

    def command(out: str) -> list[str]:
        words = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / out), "--preset", "tiny"]
        settings = ["total_kimg=9.6", "tick_kimg=1.2", "checkpoint_kimg=1.2", "denoiser.network.dropout=0.1"]
        return [*words, "--workers", "2", "--set", *settings]

    store = checkpoint_store(str(tmp_path / "struck"))
    with running_head(tmp_path_factory.mktemp("cluster"), cpus=0) as head:
        for _ in range(2):
            add_node(head, 1)
        driver, log = head.start(*command("struck"), EDM_RAY_SILENT_S="8"), head.log.with_name("driver.log")
        deadline = time.monotonic() + 240
        while not store.committed():
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        _freeze(node_with(head, "RayTrainWorker"))
        began = time.monotonic()
        assert not (tmp_path / "struck" / "model" / "manifest.json").exists(), "frozen in mid-run, not after it"
        add_node(head, 1)
        at = max(store.committed())
        while max(store.committed()) <= at:
            assert driver.poll() is None and time.monotonic() - began < 200, log.read_text()
            time.sleep(0.1)
        sys.stdout.write(f"node frozen -> next checkpoint: {time.monotonic() - began:.1f} s\n{log.read_text()}\n")
        assert driver.wait(300) == 0, log.read_text()
        head.run(*command("calm"))
    struck, calm = (open_model(str(Path(tmp_path) / name / "model")).weights for name in ("struck", "calm"))
    assert struck == calm
