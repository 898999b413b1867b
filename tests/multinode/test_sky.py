"""SkyPilot's script (cluster/sky), run for real on two machines of its own: namespaces, where its ports are free."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.manifests import CLUSTER, filled
from tests.multinode.namespaces import inside, named, network

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ADDRESSES = named("head", "other")
HEAD, OTHER = ADDRESSES
# Stands for the work, which needs GPUs and a bucket: notes what it was asked for, and what Ray it would have used.
EDM_RAY = """#!/bin/sh
echo "$RAY_ADDRESS edm-ray $*" >> "$STUB/calls"
"""


@pytest.fixture
def machines() -> Iterator[None]:
    with network(ADDRESSES):
        try:
            yield
        finally:
            for name in ADDRESSES:
                _end(name)


def _end(name: str) -> None:
    """All processes of a namespace; there are none of others in it."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    for pid in map(int, listed.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_script_makes_one_cluster_trains_and_sweeps_and_ends_on_every_node(machines, tmp_path):
    script = yaml.safe_load(filled(CLUSTER / "sky" / "train-and-sweep.yaml"))["run"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "edm-ray").write_text(EDM_RAY)
    (tmp_path / "bin" / "edm-ray").chmod(0o755)
    temp = Path("/tmp") / f"edm-{secrets.token_hex(4)}"
    variables = {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "STUB": str(tmp_path),
        "RAY_TMPDIR": str(temp),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "BUCKET": "edm-bucket",
        "SKYPILOT_NODE_IPS": "\n".join(ADDRESSES.values()),
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "4",
    }
    temp.mkdir()
    running = {}
    try:
        for rank, name in enumerate(ADDRESSES):
            with (tmp_path / f"{rank}.log").open("wb") as output:
                running[name] = subprocess.Popen(
                    [*inside(name), "bash", "-c", script],
                    env={**variables, "SKYPILOT_NODE_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                )
        assert running[HEAD].wait(300) == 0, (tmp_path / "0.log").read_text() + (tmp_path / "1.log").read_text()
        calls = (tmp_path / "calls").read_text().splitlines()
        assert [call.split()[2] for call in calls] == ["doctor", "train", "sweep"]
        assert all(call.startswith(f"{ADDRESSES[HEAD]}:6379 ") for call in calls)
        assert all("--workers 8 " in call for call in calls[1:]) and "s3://edm-bucket/sweeps/cifar10" in calls[2]
        assert running[OTHER].poll() is None, "it follows the head, which is still there"
        _end(HEAD)
        assert running[OTHER].wait(120) == 0, (tmp_path / "1.log").read_text()
    finally:
        for each in running.values():
            each.kill()
        shutil.rmtree(temp, ignore_errors=True)
