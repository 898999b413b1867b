"""Ray's head (GCS) is killed in the middle of a run: the same command on a new cluster ends as if nothing had been.

What happens to the command meanwhile is printed (`pytest -s`) and written down in docs/faults.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edm_ray.cli import main
from edm_ray.models import open_model
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store
from tests.distributed.test_stuck_on_ray import _title
from tests.jobs.heads import Head, add_node, descendants, running_head
from tests.multinode.test_nodes import SWEEP

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(1500)]
CLOCKS = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}
MOST_S = 300
"""The command must have ended so long after its head."""


@contextlib.contextmanager
def _cluster(tmp_path_factory) -> Iterator[Head]:
    """A head without CPUs and a node with two: only the node works."""
    with running_head(tmp_path_factory.mktemp("cluster"), cpus=0) as head:
        add_node(head, 2)
        yield head


def _kill_gcs(head: Head) -> None:
    pids = [pid for pid in descendants(head.process.pid) if "gcs_server" in _title(pid)]
    assert pids, descendants(head.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _wait_for(seen, driver: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _strike(head: Head, driver: subprocess.Popen) -> str:
    """The head dies; what the command says until it ends."""
    log = head.log.with_name("driver.log")
    before = len(log.read_text())
    _kill_gcs(head)
    began = time.monotonic()
    try:
        code = driver.wait(MOST_S)
    finally:
        driver.kill()
    said = log.read_text()[before:]
    sys.stdout.write(f"head killed -> end of the command, code {code}: {time.monotonic() - began:.1f} s\n{said}\n")
    return said


def test_a_training_whose_head_dies_is_resumed_by_the_same_command_on_a_new_one(digits_dir, tmp_path, tmp_path_factory):
    def command(out: str) -> list[str]:
        words = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / out), "--preset", "tiny"]
        settings = ["total_kimg=9.6", "tick_kimg=1.2", "checkpoint_kimg=1.2", "denoiser.network.dropout=0.1"]
        return [*words, "--workers", "2", "--set", *settings]

    store = checkpoint_store(str(tmp_path / "struck"))
    with _cluster(tmp_path_factory) as head:
        driver = head.start(*command("struck"))
        _wait_for(store.committed, driver, head.log.with_name("driver.log"))
        _strike(head, driver)
    assert not (tmp_path / "struck" / "model" / "manifest.json").exists(), "killed in mid-run, not after it"
    with _cluster(tmp_path_factory) as head:
        said = head.run(*command("struck"))
        assert "resuming at" in said
        head.run(*command("calm"))
    struck, calm = (
        [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(str(tmp_path / name))]
        for name in ("struck", "calm")
    )
    assert struck == calm
    weights = [open_model(str(tmp_path / name / "model")).weights for name in ("struck", "calm")]
    assert weights[0] == weights[1]


def test_a_sweep_whose_head_dies_makes_nothing_twice_on_a_new_one(
    digits_dir, digits_reference, tmp_path, tmp_path_factory
):
    run, out = tmp_path / "run", tmp_path / "struck"
    assert main(["train", "--data", str(digits_dir / "train"), "--out", str(run), "--preset", "tiny", "--no-ray"]) == 0
    command = ["sweep", "--model", str(run / "model"), "--reference", digits_reference, *SWEEP, "--out"]
    with _cluster(tmp_path_factory) as head:
        driver = head.start(*command, str(out))
        _wait_for(
            lambda: len(list((out / "chunks").rglob("*.safetensors"))) >= 4, driver, head.log.with_name("driver.log")
        )
        _strike(head, driver)
    assert not (out / "sweep.json").exists(), "killed in mid-sweep, not after it"
    before = {path: path.stat().st_mtime_ns for path in (out / "chunks").rglob("*.safetensors")}
    with _cluster(tmp_path_factory) as head:
        head.run(*command, str(out), timeout=500)
        head.run(*command, str(tmp_path / "calm"), timeout=500)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there was not made again"
    struck, calm = (json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("struck", "calm"))
    assert struck["best"] == calm["best"] and struck["decisions"] == calm["decisions"]
