"""What can be wrong with a cluster, looked for on every node before a long job does it the hard way.

`examine` runs one probe on each node (a task pinned to it), puts the answers side by side and returns findings: a line
each, with the fix beside what failed. Nothing it writes stays.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edm_ray.errors import InputError
from edm_ray.orchestration.probe import Answer, Listener, Question, clock, connect, expected_hash, probe
from edm_ray.orchestration.session import session
from edm_ray.storage import uris

MIN_MEMORY = 1 << 30
MIN_DISK = 2 << 30
MIN_SHM = 256 << 20
MAX_SKEW_S = 2.0
PROBE_TIMEOUT_S = 120.0
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Finding:
    check: str
    ok: bool
    found: str
    fix: str = ""
    """What to do; empty when it is ok."""


def examine(question: Question) -> list[Finding]:
    """Probe every node of the cluster that RAY_ADDRESS names, or of a Ray of this machine."""
    with session():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        token = uuid.uuid4().hex
        marker = None
        if question.storage is not None:
            marker = uris.join(question.storage, f".edm-ray-doctor-{token}")
            try:
                uris.write_bytes(uris.join(marker, "driver"), token.encode())
            except (OSError, InputError):
                marker = None  # each node says for itself what is wrong
        try:
            temp_dir = ray._private.worker.global_worker.node.get_temp_dir_path()
            answers, silent = _ask(nodes, lambda node: _on(node, probe).remote(question, token, temp_dir))
            findings = compare(question, answers, silent)
            findings.append(_clocks(nodes, silent))
            findings.append(_ports(nodes, silent))
            findings.append(authentication(answers, _dashboard_host()))
        finally:
            if marker is not None:
                uris.delete_directory(marker)
        return findings


def _pinned(node: dict[str, Any]) -> dict[str, Any]:
    """Options of what runs on that node and needs nothing of it: a busy cluster can be examined too."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}


def _on(node: dict[str, Any], function: Callable[..., Any]) -> Any:
    """A task pinned to a node."""
    return ray.remote(max_retries=0, **_pinned(node))(function)


def _ask(nodes: list[dict[str, Any]], start: Callable[[dict[str, Any]], Any]) -> tuple[list[Any], dict[str, str]]:
    """Answers of all nodes, and for those that gave none, why (by NodeID)."""
    asked = {start(node): node for node in nodes}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_TIMEOUT_S)
    silent = {asked[reference]["NodeID"]: f"no answer in {PROBE_TIMEOUT_S:g} s" for reference in late}
    answers = []
    for reference in sorted(ready, key=lambda r: asked[r]["NodeID"]):
        try:
            answers.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            silent[asked[reference]["NodeID"]] = str(error).strip().splitlines()[-1][:200]
    return answers, silent


def compare(question: Question, answers: list[Answer], silent: dict[str, str]) -> list[Finding]:
    """Findings from the nodes' answers alone."""
    findings = [
        Finding(
            check="nodes",
            ok=not silent and bool(answers),
            found=f"{len(answers)} answer" + "".join(f"; {node[:6]}: {why}" for node, why in silent.items()),
            fix="" if not silent else "look at that node's Ray log (raylet.err); is edm_ray installed there?",
        )
    ]
    for name in answers[0].versions if answers else ():
        found = {answer.versions[name] for answer in answers}
        findings.append(
            Finding(
                check=f"version of {name}",
                ok=len(found) == 1,
                found=found.pop() if len(found) == 1 else _by_node(answers, lambda a, name=name: a.versions[name]),
                fix=f"use one image on all nodes: {name} must be the same everywhere",
            )
        )
    gpus = [answer.gpus for answer in answers]
    kinds = sorted({name for names in gpus for name in names})
    wanted = question.device == "cuda"
    findings.append(
        Finding(
            check="devices",
            ok=bool(kinds) or not wanted,
            found=f"{sum(map(len, gpus))} GPUs ({', '.join(kinds)})" if kinds else "no GPU; CPUs only",
            fix="no node sees a GPU: is its driver there, is the image one for GPUs, does the manifest ask for a GPU?",
        )
    )
    for check, least, fix in (
        ("memory", MIN_MEMORY, "free memory or take larger nodes; Ray kills workers when it runs out"),
        ("disk", MIN_DISK, "free space where Ray keeps its session (--temp-dir), or mount a larger volume there"),
        (
            "shm",
            MIN_SHM,
            "mount an emptyDir with `medium: Memory` at /dev/shm, or docker run --shm-size: NCCL and Ray need it",
        ),
    ):
        worst = min(answers, key=lambda answer, check=check: getattr(answer, check), default=None)
        if worst is not None:
            size = getattr(worst, check)
            label = "/dev/shm" if check == "shm" else f"free {check}"
            findings.append(
                Finding(
                    check=label, ok=size >= least, found=f"{size / GIB:.1f} GiB on {worst.node}, the least", fix=fix
                )
            )
    findings += _places(question, answers)
    return [replace(finding, fix="") if finding.ok else finding for finding in findings]


def _places(question: Question, answers: list[Answer]) -> list[Finding]:
    """Storage and weights."""
    findings = []
    if question.storage is not None:
        bad = [answer for answer in answers if answer.storage]
        findings.append(
            Finding(
                check="storage",
                ok=not bad,
                found=_by_node(bad, lambda a: a.storage) if bad else f"{question.storage}: write, list, read, delete",
                fix="give the nodes a role that may Put, Get, List and Delete there (instance profile, IRSA), check "
                "AWS_REGION and AWS_ENDPOINT_URL; a local path must be the same shared folder on every node",
            )
        )
    if question.weights is not None:
        bad = [answer for answer in answers if answer.weights]
        known = expected_hash(question.weights, question.sha256)
        found = (
            f"{question.weights}: sha256 {f'{known[:8]}... as expected' if known else 'not checked, none was given'}"
        )
        findings.append(
            Finding(
                check="extractor weights",
                ok=not bad,
                found=_by_node(bad, lambda a: a.weights) if bad else found,
                fix="download them again to a place all nodes see, or give the right --sha256; an FID with other "
                "weights compares with nothing",
            )
        )
    return findings


def _by_node(answers: list[Answer], what: Callable[[Answer], str]) -> str:
    groups: dict[str, list[str]] = {}
    for answer in answers:
        groups.setdefault(what(answer), []).append(answer.node)
    return "; ".join(
        f"{value} on {', '.join(nodes[:4])}{', ...' if len(nodes) > 4 else ''}" for value, nodes in groups.items()
    )


def skew(sent: float, there: float, received: float) -> float:
    """How far a clock surely is from ours, in s: it was read between ``sent`` and ``received``."""
    return max(0.0, sent - there, there - received)


def _clocks(nodes: list[dict[str, Any]], silent: dict[str, str]) -> Finding:
    """A second task on each node, whose process is up by now, so that the bracket around its clock is narrow."""
    worst, where = 0.0, ""
    for node in nodes:
        if node["NodeID"] in silent:
            continue
        sent = time.time()
        there = ray.get(_on(node, clock).remote(), timeout=PROBE_TIMEOUT_S)
        if (found := skew(sent, there, time.time())) > worst:
            worst, where = found, f" on {node['NodeManagerAddress']}"
    ok = worst <= MAX_SKEW_S
    fix = "" if ok else "run chrony or ntpd on the nodes; S3 refuses requests that are minutes off"
    return Finding(check="clocks", ok=ok, found=f"{worst:.1f} s apart or more{where}" if where else "agree", fix=fix)


def _ports(nodes: list[dict[str, Any]], silent: dict[str, str]) -> Finding:
    """Each node connects to a port the next one opens."""
    ring = [node for node in nodes if node["NodeID"] not in silent]
    failures = []
    for node, following in zip(ring, ring[1:] + ring[:1], strict=True):
        listener = ray.remote(**_pinned(following))(Listener).remote()
        address = ray.get(listener.address.remote(), timeout=PROBE_TIMEOUT_S)
        if why := ray.get(_on(node, connect).remote(address), timeout=PROBE_TIMEOUT_S):
            failures.append(f"{node['NodeManagerAddress']} -> {address[0]}:{address[1]}: {why}")
        ray.kill(listener)
    fix = "nodes must reach each other on all ports (gloo and NCCL pick theirs): open the group to itself, and set "
    fix += "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME where a node has several networks"
    found = "; ".join(failures) if failures else f"open between nodes ({len(ring)} pairs tried)"
    return Finding(check="ports", ok=not failures, found=found, fix=fix if failures else "")


def _dashboard_host() -> str:
    """Where the job API listens: host, or '' when there is none."""
    url = ray._private.worker.global_worker.node.address_info.get("webui_url") or ""
    return url.rsplit(":", 1)[0]


def authentication(answers: list[Answer], dashboard_host: str) -> Finding:
    """Token mode everywhere, unless only this machine can reach the cluster."""
    modes = {answer.auth for answer in answers}
    hosts = {answer.node.split("/")[0] for answer in answers}
    local = len(hosts) <= 1 and dashboard_host in ("", "127.0.0.1", "localhost", "[::1]")
    if modes == {"token"}:
        return Finding(check="authentication", ok=True, found="token on every node")
    found = f"RAY_AUTH_MODE is {_by_node(answers, lambda a: a.auth)}; job API on {dashboard_host or 'no port'}"
    if local:
        return Finding(check="authentication", ok=True, found=f"{found}: only this machine reaches it")
    fix = "anyone who reaches this cluster can run code on it: start every node with RAY_AUTH_MODE=token and one token"
    return Finding(check="authentication", ok=False, found=found, fix=fix)
