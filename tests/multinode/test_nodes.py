"""Several Ray nodes on one machine, each with its own raylet and object store; one is lost in mid-run.

The head has no CPUs and each node has one, so two workers are on two nodes by arithmetic. One test is short; the others
take minutes on two cores (`make test-slow`).
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from edm_ray.cli import main
from edm_ray.models import open_model
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store
from tests.jobs.heads import Head, add_node, descendants, lose, running_head, wait_for_nodes

pytestmark = pytest.mark.ray
STEPS = ["--set", "denoiser.network.dropout=0"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs and two nodes with one each."""
    with running_head(tmp_path_factory.mktemp("cluster"), cpus=0) as head:
        for _ in range(2):
            add_node(head, 1)
        yield head


def _train(out: Path, data: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data / "train"), "--out", str(out), "--preset", "tiny", *more]


def weights(run: Path) -> np.ndarray:
    state = safetensors.torch.load(open_model(str(run / "model")).weights)
    return np.concatenate([state[name].double().numpy().ravel() for name in sorted(state)])


def test_two_workers_on_two_nodes_train_the_model_of_one_process(cluster, digits_dir, tmp_path):
    cluster.run(*_train(tmp_path / "two", digits_dir, "--workers", "2", *STEPS))
    assert main(_train(tmp_path / "one", digits_dir, "--no-ray", *STEPS)) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert np.linalg.norm(one - two) / np.linalg.norm(one) < 1e-4
    assert [row["nimg"] for row in read_metrics(str(tmp_path / "one"))] == [
        row["nimg"] for row in read_metrics(str(tmp_path / "two"))
    ]


def node_with(cluster: Head, title: str, seconds: float = 120) -> subprocess.Popen:
    """The first node that runs a process of this title, once one does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for node in cluster.extra:
            if node.poll() is None and any(title in command for command in descendants(node.pid).values()):
                return node
        time.sleep(0.1)
    raise TimeoutError(f"no node runs {title}")


def _wait_for_checkpoint(run: Path, driver: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not checkpoint_store(str(run)).committed():
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_that_loses_a_node_continues_on_another_with_the_same_bits(cluster, digits_dir, tmp_path):
    longer = ["--workers", "2", "--set", "total_kimg=4.8", "tick_kimg=0.24", "checkpoint_kimg=0.24"]
    cluster.run(*_train(tmp_path / "calm", digits_dir, *longer))
    driver = cluster.start(*_train(tmp_path / "struck", digits_dir, *longer))
    log = cluster.log.with_name("driver.log")
    try:
        _wait_for_checkpoint(tmp_path / "struck", driver, log)
        victim = node_with(cluster, "RayTrainWorker")
        lose(victim)
        assert not (tmp_path / "struck" / "model" / "manifest.json").exists(), "lost in mid-run, not after it"
        add_node(cluster, 1)  # as an autoscaler would
        assert driver.wait(400) == 0, log.read_text()
    finally:
        driver.kill()
    wait_for_nodes(cluster, 3)
    assert (
        open_model(str(tmp_path / "calm" / "model")).weights == open_model(str(tmp_path / "struck" / "model")).weights
    )


SWEEP = [
    *("--space", "tune_spaces/digits.yaml", "--workers", "2", "--chunk-size", "100", "--initial-chunks", "2"),
    *(
        "--max-chunks",
        "3",
        "--num-line",
        "2",
        "--num-global",
        "1",
        "--num-model",
        "0",
        "--confirm-chunks",
        "3",
        "--grid",
        "10",
    ),
]


@pytest.mark.slow
def test_a_sweep_that_loses_a_node_in_mid_trial_ends_with_the_same_result(cluster, digits_dir, tmp_path):
    data, run, reference = digits_dir / "train", tmp_path / "run", tmp_path / "reference"
    assert main(_train(run, digits_dir, "--no-ray")) == 0
    assert main(["reference", "--data", str(data), "--out", str(reference), "--extractor", "digits"]) == 0
    command = ["sweep", "--model", str(run / "model"), "--reference", str(reference), *SWEEP]
    driver = cluster.start(*command, "--out", str(tmp_path / "struck"))
    log = cluster.log.with_name("driver.log")
    try:
        deadline = time.monotonic() + 180
        while not list((tmp_path / "struck" / "chunks").rglob("*.safetensors")):
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        lose(node_with(cluster, "Sampler"))
        assert not (tmp_path / "struck" / "sweep.json").exists(), "lost in mid-sweep, not after it"
        add_node(cluster, 1)
        assert driver.wait(500) == 0, log.read_text()
    finally:
        driver.kill()
    cluster.run(*command, "--out", str(tmp_path / "calm"), timeout=500)
    struck, calm = (json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("struck", "calm"))
    assert struck["best"] == calm["best"] and struck["decisions"] == calm["decisions"]


@pytest.mark.slow
def test_the_doctor_sees_every_node(cluster, tmp_path):
    out = cluster.run("doctor", "--storage", str(tmp_path))
    assert "all is well" in out and "3 answer" in out and "3 pairs tried" in out
