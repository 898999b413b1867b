"""What a command refuses on a cluster of several nodes before it starts anything, and how fast."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.jobs.heads import EDM_RAY, REPOSITORY, Head, add_node, alive_nodes, end, running_head, wait_for_nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs and two nodes with one each."""
    with running_head(tmp_path_factory.mktemp("cluster"), cpus=0) as head:
        for _ in range(2):
            add_node(head, 1)
        yield head


def _refused(cluster: Head, *command: str, cwd: Path = REPOSITORY, **more: str) -> tuple[str, float]:
    """What `edm-ray COMMAND`, which must be refused, says on stderr, and how many seconds it took in all."""
    variables = {**cluster.environment, "RAY_ADDRESS": f"{cluster.host}:{cluster.gcs_port}", **more}
    started = time.monotonic()
    done = subprocess.run([EDM_RAY, *command], env=variables, cwd=cwd, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr, time.monotonic() - started


def _train(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data / "train"), "--out", str(out), "--preset", "tiny", *more]


def test_what_the_cluster_can_never_hold_is_refused_within_ten_seconds_of_the_command(cluster, digits_dir, tmp_path):
    """All of it counted: the start of Python, torch and Ray's client. The quickest of three: others use the machine,
    and where they leave less than a core to a command, the seconds that it computed are counted."""
    taken, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
    for more, there in (
        (["--workers", "8"], "needs 8 CPUs, the cluster has 2; give --workers 2 or fewer"),
        (["--workers", "2", "--device", "cuda"], "needs 2 GPUs, the cluster has 0; add a node that holds one"),
        (["--workers", "3:9"], "needs 3 CPUs, the cluster has 2; give --workers 2 or fewer"),
    ):
        said, seconds = _refused(cluster, *_train(digits_dir, tmp_path / "run", *more))
        assert there in said
        taken.append(seconds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / len(taken)
    busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    assert (computed if busy else min(taken)) < 10, (taken, computed)


def test_a_cluster_that_asks_for_a_token_is_named_when_there_is_none_or_another(cluster, tmp_path):
    said, _ = _refused(cluster, "doctor", RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    assert "RAY_AUTH_TOKEN_PATH" in said and "Traceback" not in said
    (tmp_path / "other").write_text("f" * 64)
    said, _ = _refused(cluster, "doctor", RAY_AUTH_TOKEN_PATH=str(tmp_path / "other"))
    assert "asks for a token" in said and "Traceback" not in said and "f" * 64 not in said


@pytest.fixture
def third(cluster):
    """Starts one more node with a prefix or variables of its own, and takes it away again."""
    started = []

    def start(prefix=(), **variables: str) -> None:
        before = dict(cluster.environment)
        cluster.environment.update(variables)
        try:
            started.append(add_node(cluster, 1, prefix=prefix))
        finally:
            cluster.environment.clear()
            cluster.environment.update(before)

    before = len(alive_nodes(cluster))
    yield start
    for each in started:
        end(each)
        cluster.extra.remove(each)
    wait_for_nodes(cluster, before)


def test_a_node_with_other_code_is_refused_and_named(cluster, third, digits_dir, tmp_path):
    """The same version with one line more: what an image that was not built anew looks like."""
    shutil.copytree(REPOSITORY / "edm_ray", tmp_path / "code" / "edm_ray")
    with (tmp_path / "code" / "edm_ray" / "seeding.py").open("a") as file:
        file.write("# another line\n")
    third(PYTHONPATH=str(tmp_path / "code"))
    # Not from a checkout: code that lies in the driver's directory is what its workers run, on every node.
    said, _ = _refused(cluster, *_train(digits_dir, tmp_path / "run", "--workers", "3"), cwd=tmp_path)
    assert "edm_ray is 0.1.0" in said and "here it is 0.1.0" in said and "one image" in said
    assert not list((tmp_path / "run").glob(".edm-ray-doctor*"))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a mount of its own needs root")
def test_a_node_where_results_are_another_place_is_refused_and_named(cluster, third, digits_dir, tmp_path):
    """A folder that a machine has of its own under the same name: it can be written to, and nobody else sees it."""
    results = tmp_path / "results"
    results.mkdir()
    mounted = f'mount -t tmpfs none {results} && exec "$@"'
    try:
        third(prefix=["unshare", "--mount", "sh", "-c", mounted, "sh"])
    except AssertionError as error:
        if "Operation not permitted" in str(error):
            pytest.skip("mounts are not permitted here")
        raise
    said, _ = _refused(cluster, *_train(digits_dir, results / "run", "--workers", "3"))
    assert "results/run is another place on this node" in said and "s3://" in said
    assert not (results / "run" / "model").exists() and not list((results / "run").glob(".edm-ray-doctor*"))
