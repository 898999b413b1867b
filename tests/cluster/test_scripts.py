"""What people type or a machine runs at its start: the READMEs' commands, job.sh, `ray start`, SkyPilot's script."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from tests.cluster.manifests import CLUSTER, FILLED, documents, filled

NAMES = {name: FILLED[name] for name in ("REGISTRY", "BUCKET", "REGION", "ACCOUNT")}
READMES = sorted(CLUSTER.rglob("README.md"))
JOB = CLUSTER / "kuberay" / "job.sh"


@pytest.mark.parametrize("readme", READMES, ids=[path.parent.name for path in READMES])
def test_the_commands_of_a_readme_are_shell(readme):
    text = readme.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S) + re.findall(
        r"`((?:export|sed|edm-ray|docker|aws) [^`]+)`", text
    )
    assert blocks
    for block in blocks:
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, (block, done.stderr)


def _fill(path: Path, **names: str) -> subprocess.CompletedProcess:
    variables = {"PATH": os.environ["PATH"], **names}
    return subprocess.run([str(CLUSTER / "fill.sh"), str(path)], env=variables, capture_output=True, text=True)


def test_fill_puts_in_whole_words_and_refuses_to_guess_one(tmp_path):
    """With sed alone AWS_REGION became AWS_us-east-1; with a name unset the manifest would lack it."""
    path = tmp_path / "x.yaml"
    path.write_text("AWS_REGION: REGION\na: s3://BUCKET/x s3://BUCKET/y $BUCKET [SUBNET]\n\nend: REGION\n")
    done = _fill(path, REGION="r-1", BUCKET="b", SUBNET="s-t")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "AWS_REGION: r-1\na: s3://b/x s3://b/y $BUCKET [s-t]\n\nend: r-1\n"
    for missing in ({"REGION": "r"}, {"REGION": "r", "BUCKET": "", "SUBNET": "s"}):
        done = _fill(path, **missing)
        assert done.returncode != 0 and "BUCKET" in done.stderr and not done.stdout
    assert _fill(tmp_path / "none").returncode != 0


KUBECTL = """#!/bin/sh
# A cluster whose RayJob is done at the third look.
echo "$*" >> "$STUB/calls"
case "$*" in
    *"get rayjob"*) n=$(cat "$STUB/looks" 2>/dev/null || echo 0); echo $((n + 1)) > "$STUB/looks"
        if [ "$n" -lt 2 ]; then printf Running/RUNNING; else printf "$END"; fi ;;
    *apply*) cat > "$STUB/applied" ;;
    *logs*) echo "the last words" ;;
esac
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("Complete/SUCCEEDED", 0), ("Failed/FAILED", 1), ("Complete/STOPPED", 1), ("ValidationFailed/", 1)],
)
def test_job_waits_for_the_end_whatever_it_is_and_says_it(tmp_path, end, code):
    """A job that failed must not be waited for until a timeout, nor taken for one that has succeeded."""
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STUB": str(tmp_path), "END": end, "POLL_SECONDS": "0.05"}
    done = subprocess.run([str(JOB), "sweep"], env={**NAMES, **variables}, capture_output=True, text=True, timeout=30)
    assert done.returncode == code and f"edm-sweep: {end}" in done.stdout and "the last words" in done.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    # Applied again unchanged it would stay as it was, and nothing would run.
    assert "delete rayjob edm-sweep --ignore-not-found" in calls[0] and calls[1].startswith("apply")
    assert yaml.safe_load((tmp_path / "applied").read_text())["metadata"]["name"] == "edm-sweep"


def _starts() -> list[tuple[str, list[str]]]:
    """(where, words after `ray start`) of everything that starts a Ray node."""
    ray_up = yaml.safe_load(filled(CLUSTER / "ray-up" / "aws.yaml"))
    sky = yaml.safe_load(filled(CLUSTER / "sky" / "train-and-sweep.yaml"))
    texts = {"aws.yaml": ray_up["head_start_ray_commands"] + ray_up["worker_start_ray_commands"], "sky": [sky["run"]]}
    found = [
        (where, shlex.split(match.group(1)))
        for where, lines in texts.items()
        for line in lines
        for match in re.finditer(r"ray start (--[^;\n]*)", line)
    ]
    cluster = next(document for _, document in documents("kuberay") if document["kind"] == "RayCluster")["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        found.append(("raycluster.yaml", [f"--{name}={value}" for name, value in group["rayStartParams"].items()]))
    return found


def test_ray_start_knows_every_option_that_nodes_are_started_with():
    """Read by Ray's own command, which stops at one that it does not know or cannot take."""
    starts = _starts()
    assert [where for where, _ in starts] == ["aws.yaml"] * 2 + ["sky"] * 2 + ["raycluster.yaml"] * 3
    start = ray_cli.commands["start"]
    for _, words in starts:
        start.make_context("ray start", list(words))
    agents = [[word for word in words if "agent-listen" in word] for where, words in starts if where == "sky"]
    assert agents == [["--dashboard-agent-listen-port=52366"]] * 2  # SkyPilot's own Ray has 52365
    with pytest.raises(Exception, match="no-such"):
        start.make_context("ray start", ["--head", "--no-such=1"])
    sky = yaml.safe_load(filled(CLUSTER / "sky" / "train-and-sweep.yaml"))["run"]
    for name in set(re.findall(r"(?<![\w-])ray ([a-z-]+)\b", sky)) | {"get-auth-token", "dashboard", "up", "down"}:
        assert name in ray_cli.commands, name
