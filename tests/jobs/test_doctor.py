"""The doctor: healthy, and each thing that can be made wrong here, made wrong."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from edm_ray.cli import main
from edm_ray.distributed.cluster.doctor import authentication, compare, skew
from edm_ray.distributed.cluster.probe import Question, Report, check_weights, expected_hash
from edm_ray.distributed.cluster.storage_check import check_storage

GIB = 1 << 30


def _answer(node: str = "10.0.0.1/aaaaaa", **changes) -> Report:
    versions = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "edm_ray": "0.1.0 (0123456789)"}
    whole = Report(
        node=node,
        versions=versions,
        gpus=("A100",),
        cpus=8.0,
        memory=8 * GIB,
        disk=50 * GIB,
        shm=4 * GIB,
        auth="token",
    )
    return dataclasses.replace(whole, **changes)


def _failed(findings) -> list[str]:
    for finding in findings:
        assert bool(finding.fix) != finding.ok, finding  # a fix beside what failed, and nothing beside what did not
    return [finding.check for finding in findings if not finding.ok]


def test_equal_healthy_nodes_have_no_findings():
    question = Question(storage="s3://b/x", weights="/w", sha256="ab", device="cuda")
    assert _failed(compare(question, [_answer(), _answer("10.0.0.2/bbbbbb")], {})) == []


@pytest.mark.parametrize("name", ["python", "ray", "torch", "edm_ray"])
def test_a_version_that_differs_is_named_with_its_node(name):
    other = _answer("10.0.0.2/bbbbbb", versions={**_answer().versions, name: "other"})
    findings = compare(Question(), [_answer(), other], {})
    assert _failed(findings) == [f"version of {name}"]
    found = next(finding.found for finding in findings if not finding.ok)
    assert "other on 10.0.0.2/bbbbbb" in found


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"memory": GIB // 2}, ["free memory"]),
        ({"disk": GIB}, ["free disk"]),
        ({"shm": 64 << 20}, ["/dev/shm"]),
        ({"storage": "write: Access Denied"}, ["storage"]),
        ({"weights": "missing: no such file"}, ["extractor weights"]),
    ],
)
def test_one_bad_node_is_enough(change, failed):
    question = Question(storage="s3://b/x", weights="/w")
    findings = compare(question, [_answer(), _answer("10.0.0.9/cccccc", **change)], {})
    assert _failed(findings) == failed
    assert "10.0.0.9/cccccc" in next(finding.found for finding in findings if not finding.ok)


def test_no_gpu_is_wrong_only_when_one_is_wanted():
    nodes = [_answer(gpus=())]
    assert _failed(compare(Question(), nodes, {})) == []
    assert _failed(compare(Question(device="cuda"), nodes, {})) == ["devices"]


def test_a_cluster_of_cpu_and_gpu_images_is_healthy():
    """The head's image has torch's CPU build: the same version, built otherwise."""
    gpu = _answer("10.0.0.2/bbbbbb", versions={**_answer().versions, "torch": "2.13.0+cu128"})
    findings = compare(Question(), [_answer(gpus=()), gpu], {})
    assert _failed(findings) == []
    assert "2.13.0 and 2.13.0+cu128" in [finding.found for finding in findings if finding.check == "version of torch"]


def test_a_cluster_at_rest_is_healthy_when_its_autoscaler_may_bring_gpus(monkeypatch):
    monkeypatch.setenv("EDM_RAY_MAX_GPUS", "8")
    findings = compare(Question(device="cuda"), [_answer(gpus=())], {})
    assert _failed(findings) == []
    assert "no GPU now; the autoscaler may bring 8" in [finding.found for finding in findings]


def test_a_node_that_is_lost_while_it_is_asked_is_a_finding_and_not_a_crash(monkeypatch):
    from edm_ray.distributed.cluster import doctor
    from edm_ray.distributed.cluster.nodes import Replies, Reply

    good = {"NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.1"}
    gone = {"NodeID": "b" * 56, "NodeManagerAddress": "10.0.0.2"}
    replies = Replies([Reply(good, 5.0, 4.0, 6.0)], {gone["NodeID"]: "node died"})
    monkeypatch.setattr(doctor, "ask_nodes", lambda nodes, start: replies)
    finding = doctor._clocks([good, gone])
    assert not finding.ok and "bbbbbb (node died)" in finding.found and finding.fix


def test_a_node_that_does_not_answer_is_a_failure():
    assert _failed(compare(Question(), [_answer()], {"abcdef123": "no answer in 120 s"})) == ["nodes"]
    assert not compare(Question(), [], {"abcdef123": "died"})[0].ok


@pytest.mark.parametrize(
    ("mode", "hosts", "dashboard", "ok"),
    [
        ("token", ("10.0.0.1", "10.0.0.2"), "0.0.0.0", True),
        ("disabled", ("10.0.0.1",), "127.0.0.1", False),  # Ray's other processes listen on every address
        ("disabled", ("10.0.0.1",), "", False),
        ("disabled", ("10.0.0.1",), "0.0.0.0", False),
        ("unset", ("10.0.0.1", "10.0.0.2"), "127.0.0.1", False),
    ],
)
def test_an_open_cluster_that_others_can_reach_is_a_failure(mode, hosts, dashboard, ok):
    finding = authentication([_answer(f"{host}/aaaaaa", auth=mode) for host in hosts], dashboard)
    assert finding.ok is ok and bool(finding.fix) != ok


def test_half_a_cluster_with_the_token_is_a_failure():
    answers = [_answer(), _answer("10.0.0.2/bbbbbb", auth="disabled")]
    assert not authentication(answers, "127.0.0.1").ok


def test_a_clock_is_only_called_wrong_when_it_must_be():
    assert skew(100.0, 101.0, 103.0) == 0.0  # read somewhere between: may be right
    assert skew(100.0, 110.0, 103.0) == 7.0 and skew(100.0, 95.0, 103.0) == 5.0


def test_storage_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / ".edm-ray-doctor-t").mkdir()
    (tmp_path / ".edm-ray-doctor-t" / "driver").write_text("t")
    (tmp_path / "kept").write_text("x")
    assert check_storage(str(tmp_path), "t", "node") == ""
    assert {path.name for path in tmp_path.rglob("*")} == {"kept", ".edm-ray-doctor-t", "driver"}


def test_a_local_path_that_nodes_do_not_share_is_found(tmp_path):
    """What another node's /data would look like: writable, but without what the driver wrote."""
    assert check_storage(str(tmp_path), "t", "node").startswith("shared:")


def test_bad_storage_says_which_step_failed(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert check_storage(str(blocked / "x"), "t", "node").startswith("write:")
    assert "not supported" in check_storage("gs://bucket/x", "t", "node")


def test_weights_are_found_missing_wrong_or_right(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert check_weights(str(path), digest) == "" and check_weights(str(path), None) == ""
    assert check_weights(str(path), "0" * 64).startswith("wrong:")
    assert check_weights(str(tmp_path / "none"), None).startswith("missing:")
    named = tmp_path / f"weights-2015-{digest[:8]}.pth"
    named.write_bytes(b"weights")
    assert check_weights(str(named), None) == ""
    named.write_bytes(b"other")
    assert check_weights(str(named), None).startswith("wrong:")
    assert expected_hash("s3://b/weights-inception-2015-12-05-6726825d.pth", None) == "6726825d"


@pytest.mark.ray
def test_a_healthy_machine_and_a_sick_one(ray_session, tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    good = ["doctor", "--storage", str(tmp_path / "runs"), "--weights", str(weights)]
    assert main(good) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "all is well" in out and "FAIL" not in out
    for word in ("version of ray", "free memory", "storage", "extractor weights", "clocks", "ports", "authentication"):
        assert f"ok    {word}" in out, word
    assert not list((tmp_path / "runs").iterdir())
    (tmp_path / "blocked").write_text("")
    bad = ["doctor", "--storage", str(tmp_path / "blocked"), "--weights", str(weights), "--sha256", "0" * 64]
    assert main([*bad, "--device", "cuda"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAIL") == 3 == out.count("fix:") and "3 of 14 checks failed" in out
    for word in ("FAIL  storage", "FAIL  extractor weights", "FAIL  devices"):
        assert word in out


def test_an_answer_travels_without_torch():
    """Reading it must not import torch, nor anything else that the asking side has not got."""
    import pickle
    import subprocess
    import sys

    from edm_ray.distributed.cluster.probe import versions

    content = pickle.dumps(versions())
    script = f"import pickle, sys; pickle.loads({content!r}); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
