"""Nodes in network namespaces of their own, with their own addresses: nothing works by way of a shared loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from edm_ray.checkpoint import open_model
from edm_ray.training.run import checkpoint_store, model_uri
from tests.jobs.heads import EDM_RAY, REPOSITORY, Head, add_node, lose, running_head, wait_for_nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Names of this process alone, of at most 15 characters; an address range meant for tests like this (RFC 2544).
TAG = f"edm{os.getpid() % 100_000}"
NETWORK = "198.18.7"
ADDRESSES = {f"{TAG}-{role}": f"{NETWORK}.{10 + number}" for number, role in enumerate(("head", "one", "two", "new"))}
HEAD, ONE, TWO, NEW = ADDRESSES


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _inside(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A bridge, and a namespace with an address on it for each node; skipped where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    with contextlib.ExitStack() as stack:
        try:
            _ip("link", "add", TAG, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"networks may not be made here: {error.stderr.strip()}")
        stack.callback(subprocess.run, ["ip", "link", "del", TAG], capture_output=True)
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", TAG)
        _ip("link", "set", TAG, "up")
        for number, (name, address) in enumerate(ADDRESSES.items()):
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
            cable = f"{TAG}v{number}"
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            stack.callback(subprocess.run, ["ip", "link", "del", cable], capture_output=True)
            _ip("link", "set", cable, "master", TAG, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield


@pytest.fixture(scope="module")
def cluster(network, tmp_path_factory) -> Iterator[Head]:
    """A head without CPUs and two nodes with one each, three addresses."""
    with running_head(tmp_path_factory.mktemp("netns"), host=ADDRESSES[HEAD], prefix=_inside(HEAD), cpus=0) as head:
        for name in (ONE, TWO):
            add_node(head, 1, host=ADDRESSES[name], prefix=_inside(name))
        yield head


def _train(out, data, *more: str) -> list[str]:
    return ["train", "--data", str(data / "train"), "--out", str(out), "--preset", "tiny", "--workers", "2", *more]


def test_nodes_have_addresses_of_their_own_and_the_doctor_is_content(cluster, tmp_path):
    """From outside, over the bridge: the address is not loopback, so the token is asked for and needed."""
    nodes = cluster.get("/api/v0/nodes?detail=0")["data"]["result"]["result"]
    assert {node["node_ip"] for node in nodes if node["state"] == "ALIVE"} == {
        ADDRESSES[name] for name in (HEAD, ONE, TWO)
    }
    refused = cluster.submit("--list", RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2 and "no token would be sent" in refused.stderr
    command = [EDM_RAY, "doctor", "--address", cluster.address, "--storage", str(tmp_path)]
    done = subprocess.run(command, env=cluster.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 answer" in done.stdout and "3 pairs tried" in done.stdout and "token on every node" in done.stdout


def test_training_across_namespaces_survives_the_loss_of_a_node(cluster, digits_dir, tmp_path):
    """Submitted over HTTP from outside; a node is cut off and killed, another with a new address takes its place."""
    longer = ["--set", "total_kimg=4.8", "tick_kimg=0.24", "checkpoint_kimg=0.24"]
    calm = cluster.submit("--", *_train(tmp_path / "calm", digits_dir, *longer))
    assert calm.returncode == 0, calm.stdout + calm.stderr
    struck = tmp_path / "struck"
    command = [EDM_RAY, "submit", "--address", cluster.address, "--", *_train(struck, digits_dir, *longer)]
    log = tmp_path / "driver.log"
    with log.open("wb") as output:
        driver = subprocess.Popen(command, env=cluster.environment, cwd=REPOSITORY, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 240
        while not checkpoint_store(str(struck)).committed():
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        _ip("-n", TWO, "link", "set", "eth0", "down")
        lose(cluster.extra[1])
        assert not (struck / "model" / "manifest.json").exists(), "lost in mid-run, not after it"
        add_node(cluster, 1, host=ADDRESSES[NEW], prefix=_inside(NEW))
        assert driver.wait(400) == 0, log.read_text()
    finally:
        driver.kill()
    assert "SUCCEEDED" in log.read_text()
    assert open_model(model_uri(str(tmp_path / "calm"))).weights == open_model(model_uri(str(struck))).weights
    wait_for_nodes(cluster, 3)
