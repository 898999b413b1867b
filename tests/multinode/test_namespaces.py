"""Nodes in network namespaces of their own, with their own addresses: nothing works by way of a shared loopback."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from edm_ray.cli import main
from edm_ray.models import open_model
from edm_ray.training.run import checkpoint_store, model_uri
from tests.jobs.heads import (
    EDM_RAY,
    REPOSITORY,
    Head,
    add_node,
    descendants,
    lose,
    running_head,
    wait_for_nodes,
)
from tests.multinode.namespaces import inside, ip, named, network

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ADDRESSES = named("head", "one", "two", "new")
HEAD, ONE, TWO, NEW = ADDRESSES


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    with network(ADDRESSES):
        yield


@pytest.fixture(scope="module")
def cluster(machines, tmp_path_factory) -> Iterator[Head]:
    """A head without CPUs and two nodes with one each, three addresses."""
    with running_head(tmp_path_factory.mktemp("netns"), host=ADDRESSES[HEAD], prefix=inside(HEAD), cpus=0) as head:
        for name in (ONE, TWO):
            add_node(head, 1, host=ADDRESSES[name], prefix=inside(name, head.temp))
        yield head


SWEEP = [
    *("--space", "tune_spaces/digits.yaml", "--workers", "2", "--strategy", "random", "--num-global", "4"),
    *("--chunk-size", "100", "--initial-chunks", "2", "--max-chunks", "2", "--confirm-chunks", "2", "--grid", "10"),
]


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
        ip("-n", TWO, "link", "set", "eth0", "down")
        lose(cluster.extra[1])
        assert not (struck / "model" / "manifest.json").exists(), "lost in mid-run, not after it"
        add_node(cluster, 1, host=ADDRESSES[NEW], prefix=inside(NEW, cluster.temp))
        assert driver.wait(400) == 0, log.read_text()
    finally:
        driver.kill()
    assert "SUCCEEDED" in log.read_text()
    assert open_model(model_uri(str(tmp_path / "calm"))).weights == open_model(model_uri(str(struck))).weights
    wait_for_nodes(cluster, 3)


def test_a_sweep_across_namespaces_survives_the_loss_of_a_node_in_mid_trial(cluster, digits_dir, tmp_path):
    """The node's cable is cut first: what it was making is lost, and the others hear nothing of it."""
    run, reference = tmp_path / "run", tmp_path / "reference"
    assert main([*_train(run, digits_dir)[:-2], "--no-ray"]) == 0
    data = str(digits_dir / "train")
    assert main(["reference", "--data", data, "--out", str(reference), "--extractor", "digits"]) == 0
    command = ["sweep", "--model", str(run / "model"), "--reference", str(reference), *SWEEP]
    log = tmp_path / "driver.log"
    with log.open("wb") as output:
        submitted = [EDM_RAY, "submit", "--address", cluster.address, "--", *command, "--out", str(tmp_path / "struck")]
        driver = subprocess.Popen(submitted, env=cluster.environment, cwd=REPOSITORY, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "struck" / "chunks").rglob("*.safetensors")):
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        name, victim = _sampling(cluster)
        ip("-n", name, "link", "set", "eth0", "down")
        lose(victim)
        assert not (tmp_path / "struck" / "sweep.json").exists(), "lost in mid-sweep, not after it"
        ip("-n", name, "link", "set", "eth0", "up")
        add_node(cluster, 1, host=ADDRESSES[name], prefix=inside(name, cluster.temp))
        assert driver.wait(500) == 0, log.read_text()
    finally:
        driver.kill()
    wait_for_nodes(cluster, 3)
    calm = cluster.submit("--", *command, "--out", str(tmp_path / "calm"), timeout=500)
    assert calm.returncode == 0, calm.stdout + calm.stderr
    one, two = (json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("struck", "calm"))
    assert one["best"] == two["best"] and one["decisions"] == two["decisions"]


def _sampling(cluster: Head) -> tuple[str, subprocess.Popen]:
    """A living node on which a sampler runs, and the namespace that it is in."""
    for node in cluster.extra:
        commands = descendants(node.pid).values() if node.poll() is None else ()
        if any("Sampler" in command for command in commands):
            address = re.search(r"--node-ip-address=(\S+)", " ".join(node.args)).group(1)
            return next(name for name, value in ADDRESSES.items() if value == address), node
    raise LookupError("no node has a sampler")
