"""Jobs on a real cluster of one head, in token mode, over HTTP. One head for the module; all but one test are slow."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from edm_ray.data.manifest import open_dataset
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store
from tests.jobs.heads import RAY, REPOSITORY, Head, leaks, running_head

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with running_head(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def data(head, shared) -> Path:
    """The digits, prepared by a job."""
    done = head.submit("--", "prepare", "digits", str(shared / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images of 8x8x1" in done.stdout and "SUCCEEDED" in done.stdout
    return shared / "data"


def _bare_status(head: Head, path: str, body: bytes | None = None, port: int | None = None) -> int:
    """HTTP status without a token."""
    url = f"http://{head.host}:{port or head.dashboard_port}{path}"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_job_runs_over_http_with_the_token_and_not_without(head, data, shared):
    assert open_dataset(str(data / "train")).rows > 1000
    sentinel = shared / "sentinel"
    body = json.dumps({"entrypoint": f"touch {sentinel}"}).encode()
    assert _bare_status(head, "/api/jobs/", body) == 401 and _bare_status(head, "/api/jobs/") == 401
    other = shared / "other-token"
    other.write_text("f" * 64)
    refused = head.submit("--list", RAY_AUTH_TOKEN_PATH=str(other))
    assert refused.returncode == 2 and "token was refused" in refused.stderr and "f" * 64 not in refused.stderr
    assert not sentinel.exists()


def test_the_health_probes_of_the_manifests_need_no_token(head):
    """As the kubelet asks: head (job API's port) and worker (agent's port)."""
    text = (REPOSITORY / "cluster" / "kuberay" / "raycluster.yaml").read_text()
    paths = set(re.findall(r"path: (/api/\w+)", text))
    assert paths == {"/api/gcs_healthz", "/api/local_raylet_healthz"}
    assert _bare_status(head, "/api/gcs_healthz") == 200
    assert _bare_status(head, "/api/local_raylet_healthz", port=head.agent_port) == 200


def _train(out: Path, data: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data / "train"), "--out", str(out), "--preset", "tiny", "--workers", "2", *more]


@pytest.mark.slow
def test_train_reference_and_a_sweep_run_as_jobs_and_the_same_job_resumes(head, data, shared):
    run, sweep = shared / "run", shared / "sweep"
    done = head.submit("--", *_train(run, data))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images/s" in done.stdout and (run / "model" / "manifest.json").is_file()
    rows = read_metrics(str(run))
    again = head.submit("--", *_train(run, data, "--set", "total_kimg=0.48"))
    assert again.returncode == 0 and "resuming at 240 images" in again.stdout, again.stdout
    assert read_metrics(str(run))[: len(rows)] == rows and read_metrics(str(run))[-1]["nimg"] == 480
    reference = head.submit(
        "--", "reference", "--data", str(data / "train"), "--out", str(shared / "ref"), "--extractor", "digits"
    )
    assert reference.returncode == 0, reference.stdout
    command = ["sweep", "--model", str(run / "model"), "--reference", str(shared / "ref"), "--out", str(sweep)]
    command += ["--space", "tune_spaces/digits.yaml", "--workers", "2", "--chunk-size", "50", "--initial-chunks", "1"]
    command += [
        "--max-chunks",
        "2",
        "--num-line",
        "2",
        "--num-global",
        "1",
        "--num-model",
        "0",
        "--confirm-chunks",
        "2",
        "--grid",
        "10",
    ]
    swept = head.submit("--", *command, timeout=500)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    for name in ("report.html", "best-sampler.yaml", "sweep.json"):
        assert (sweep / name).stat().st_size > 100


@pytest.mark.slow
def test_ray_job_submit_runs_the_same_script(head, data, shared):
    """What the manifests and other tools use: Ray's own client and jobs/train.py."""
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "jobs/train.py"]
    command += _train(shared / "by-ray", data)[1:]
    environment = {**head.environment, "RAY_ADDRESS": head.address}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (shared / "by-ray" / "model" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_job_that_fails_returns_its_own_code_and_says_why(head, shared):
    done = head.submit("--", *_train(shared / "never", shared / "no-such-data"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no-such-data" in done.stdout and "FAILED" in done.stdout
    assert not (shared / "never").exists()
    job = re.search(r"raysubmit_\w+", done.stdout).group()
    status = head.submit("--status", job)
    assert status.returncode == 2 and "FAILED" in status.stdout
    listed = head.submit("--list")
    assert listed.returncode == 0 and re.search(rf"{job}\s+FAILED", listed.stdout)


@pytest.mark.slow
def test_a_stopped_job_is_not_done_and_resumes_when_submitted_again(head, data, shared):
    run = shared / "stopped"
    long = ["--set", "total_kimg=400", "tick_kimg=0.24", "checkpoint_kimg=0.24"]
    detached = head.submit("--detach", "--", *_train(run, data, *long))
    assert detached.returncode == 0, detached.stdout + detached.stderr
    job = re.search(r"raysubmit_\w+", detached.stdout).group()
    deadline = time.monotonic() + 120
    while not checkpoint_store(str(run)).committed():
        assert time.monotonic() < deadline, head.submit("--status", job).stdout
        time.sleep(0.2)
    second = head.submit("--", *_train(run, data, *long))
    assert second.returncode == 2 and job in second.stderr and "writes there" in second.stderr
    stopped = head.submit("--stop", job)
    assert stopped.returncode == 0 and "STOPPED" in stopped.stdout, stopped.stdout + stopped.stderr
    assert head.submit("--status", job).returncode == 143
    followed = head.submit("--follow", job)
    assert followed.returncode == 143 and "images" in followed.stdout
    seen = checkpoint_store(str(run)).committed()[-1]
    assert not (run / "model" / "manifest.json").is_file()
    total = (seen + 480) / 1000
    again = head.submit("--", *_train(run, data, "--set", f"total_kimg={total}", "tick_kimg=0.24"))
    assert again.returncode == 0 and "resuming at" in again.stdout, again.stdout + again.stderr
    assert (run / "model" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_doctor_runs_as_a_job_and_its_verdict_comes_back(head, shared):
    from tests.jobs.heads import EDM_RAY

    for storage, code in ((shared / "runs", 0), (Path("/proc/no-such-place"), 1)):
        command = [EDM_RAY, "doctor", "--address", head.address, "--storage", str(storage)]
        done = subprocess.run(
            command, env=head.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "token on every node" in done.stdout and (code == 0 or "FAIL  storage" in done.stdout)


def test_no_secret_of_the_environment_is_in_what_the_head_and_its_jobs_wrote(head, data, shared):
    """Ray's session and logs, the uploaded code, and all that the jobs left (heads.py plants the secrets)."""
    assert any(head.temp.rglob("job-driver-*.log")), "the jobs' logs are below the folder that is searched"
    assert leaks(head.temp) == [] and leaks(shared) == [] and leaks(head.log.parent) == []
