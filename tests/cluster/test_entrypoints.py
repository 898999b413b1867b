"""The commands in the manifests and READMEs are run for real, with --dry-run, on small data at the places they name."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.cli.job import JOB_COMMANDS, check_places, parse
from edm_ray.data.manifest import open_dataset
from edm_ray.evaluation.extractors.registry import Extractor
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import ExtractorSpec, commit_reference
from tests.cluster.manifests import entrypoints
from tests.data.sources import make_cifar, pixels_of

ENTRYPOINTS = entrypoints()


def _words(command: str, bucket: Path | None = None) -> list[str]:
    """``python /opt/edm_ray/jobs/train.py --data s3://...`` -> ``train --data ...``, the bucket made a folder."""
    command = (
        command.replace("$BUCKET", "edm-bucket")
        .replace("/opt/edm_ray/", "")
        .replace('"$gpus"', "8")
        .replace(" /data/", " s3://edm-bucket/raw/")
    )
    if bucket is not None:
        command = command.replace("s3://edm-bucket", str(bucket))
    words = shlex.split(command)
    if words[0] == "python":
        script = Path(words[1])
        assert script.is_file(), script
        words = [script.stem, *words[2:]]
    return words


def _stub() -> Extractor:
    """Stands for Inception, whose weights are not here: a dry run needs to know who the reference says it is of."""
    return Extractor("inception", lambda x: x.flatten(1)[:, :4].float(), 4, 14, 25, "0" * 64, lambda x: x)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Path:
    """Small data where the manifests expect CIFAR-10, its model and its reference."""
    root = tmp_path_factory.mktemp("bucket")
    archive = root / "raw" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    make_cifar(archive, pixels_of(30), [i % 3 for i in range(30)])
    data = str(root / "data" / "cifar10")
    assert main(["prepare", str(archive), data]) == 0
    run = ["train", "--data", data, "--out", str(root / "runs" / "cifar10"), "--preset", "tiny", "--no-ray"]
    assert main([*run, "--set", "total_kimg=0.024", "tick_kimg=0.024", "checkpoint_kimg=0.024"]) == 0
    (root / "raw" / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"a dry run looks for the file alone")
    stub = _stub()
    moments = Moments.of(np.arange(40, dtype=np.int32).reshape(10, 4), stub.identity, stub.scale_bits)
    commit_reference(str(root / "refs" / "cifar10"), moments, open_dataset(data), stub, b"stub")
    return root


def _run(command: str, words: list[str], monkeypatch) -> int:
    """As it is written: by the script that it names, or by the command."""
    if not command.startswith("python "):
        return main(words)
    script = Path("jobs") / f"{words[0]}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_commands_are_found():
    """All five steps of a sweep, in the KubeRay jobs and in each README."""
    names = {_words(command)[0] for where, command in ENTRYPOINTS if where.startswith("kuberay/")}
    assert names == {"prepare", "train", "reference", "evaluate", "sweep"}
    for folder in ("kuberay", "ray-up", "sky"):
        assert any(f"cluster/{folder}/" in where for where, _ in ENTRYPOINTS), folder


@pytest.mark.parametrize(("where", "command"), ENTRYPOINTS, ids=[f"{w}:{c.split()[0]}" for w, c in ENTRYPOINTS])
def test_a_manifest_s_command_is_valid_and_its_places_outlive_the_job(where, command):
    name, args = parse(_words(command))
    assert name in JOB_COMMANDS
    check_places(name, args, Path.cwd())


@pytest.mark.parametrize(("where", "command"), ENTRYPOINTS, ids=[f"{w}:{c.split()[0]}" for w, c in ENTRYPOINTS])
def test_a_manifest_s_command_plans_its_work(where, command, bucket, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # as a job on a cluster has it
    monkeypatch.setattr(ExtractorSpec, "load", lambda spec: _stub())
    words = _words(command, bucket)
    if words[0] == "doctor":
        pytest.skip("the doctor has tests of its own")
    if words[0] == "prepare":
        words[2] += "-again"  # what is there already is not planned
    elif words[0] in ("reference", "train"):
        words[words.index("--out") + 1] += "-again"
    before = {path for path in bucket.rglob("*") if path.is_file()}
    assert _run(command, [*words, "--dry-run"], monkeypatch) == 0, capsys.readouterr().err
    assert {path for path in bucket.rglob("*") if path.is_file()} == before, "a dry run writes nothing"
