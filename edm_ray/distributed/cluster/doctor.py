"""What can be wrong with a cluster, looked for on every node before a long job finds it the hard way.

`examine` probes each node (a task pinned to it), compares the reports and returns findings: one line for each check,
with the fix where it failed. Nothing it writes stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ray

from edm_ray.distributed.cluster.node_check import ONE_IMAGE, released
from edm_ray.distributed.cluster.nodes import Node, ask_nodes, living, on, pinned
from edm_ray.distributed.cluster.preflight import may_grow_to
from edm_ray.distributed.cluster.probe import Listener, Question, Report, clock, connect, expected_hash, probe
from edm_ray.distributed.cluster.storage_check import marked
from edm_ray.distributed.ray_private import dashboard_address, session_folder
from edm_ray.distributed.session import session

MAX_SKEW_S = 2.0
GIB = 1 << 30
SPACE = {
    "memory": ("free memory", 1 << 30, "free memory or take larger nodes; Ray kills workers when it runs out"),
    "disk": (
        "free disk",
        2 << 30,
        "free space where Ray keeps its session (--temp-dir), or mount a larger volume there",
    ),
    "shm": (
        "/dev/shm",
        256 << 20,
        "mount an emptyDir with `medium: Memory` at /dev/shm, or docker run --shm-size: NCCL and Ray need it",
    ),
}
"""Field of a report -> its name for people, the least bytes, and the fix."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one check."""

    check: str
    ok: bool
    found: str
    fix: str = ""
    """What to do; said only where it is not ok."""

    def __post_init__(self) -> None:
        if self.ok:
            object.__setattr__(self, "fix", "")


def examine(question: Question, address: str | None = None) -> list[Finding]:
    """Probe every node of the cluster at ``address`` or RAY_ADDRESS, or of a Ray of this machine."""
    with session(address):
        folder = session_folder()
        with marked(question.storage) as token:
            replies = ask_nodes(living(), lambda node: on(node, probe).remote(question, token, folder))
        reports, there = [each.answer for each in replies.heard], [each.node for each in replies.heard]
        host = dashboard_address().rsplit(":", 1)[0]
        return [
            *compare(question, reports, replies.silent),
            _clocks(there),
            _ports(there),
            authentication(reports, host),
        ]


def compare(question: Question, reports: list[Report], silent: dict[str, str]) -> list[Finding]:
    """Findings from the nodes' reports alone; ``silent``: why others gave none, by node id."""
    findings = [_nodes(reports, silent), *_versions(reports), _devices(question, reports), *_space(reports)]
    if question.storage is not None:
        findings.append(_storage(question.storage, reports))
    if question.weights is not None:
        findings.append(_weights(question.weights, question.sha256, reports))
    return findings


def _nodes(reports: list[Report], silent: dict[str, str]) -> Finding:
    return Finding(
        check="nodes",
        ok=not silent and bool(reports),
        found=f"{len(reports)} answer" + "".join(f"; {node[:6]}: {why}" for node, why in silent.items()),
        fix="look at that node's Ray log (raylet.err); is edm_ray installed there?" if silent else "",
    )


def _versions(reports: list[Report]) -> list[Finding]:
    return [_version(name, reports) for name in (reports[0].versions if reports else ())]


def _version(name: str, reports: list[Report]) -> Finding:
    found = sorted({report.versions[name] for report in reports})
    same = len({released(version) for version in found}) == 1
    return Finding(
        check=f"version of {name}",
        ok=same,
        found=" and ".join(found) if same else _by_node(reports, lambda report: report.versions[name]),
        fix=f"{ONE_IMAGE}: {name} must be the same everywhere",
    )


def _devices(question: Question, reports: list[Report]) -> Finding:
    kinds = sorted({name for report in reports for name in report.gpus})
    count, to_come = sum(len(report.gpus) for report in reports), int(may_grow_to("GPU"))
    none = f"no GPU now; the autoscaler may bring {to_come}" if to_come else "no GPU; CPUs only"
    return Finding(
        check="devices",
        ok=bool(kinds or to_come) or question.device != "cuda",
        found=f"{count} GPUs ({', '.join(kinds)})" if kinds else none,
        fix="no node sees a GPU: is its driver there, is the image one for GPUs, does the manifest ask for a GPU?",
    )


def _space(reports: list[Report]) -> list[Finding]:
    return [_least(reports, field, *told) for field, told in SPACE.items()] if reports else []


def _least(reports: list[Report], field: str, label: str, least: int, fix: str) -> Finding:
    size, node = min((getattr(report, field), report.node) for report in reports)
    return Finding(check=label, ok=size >= least, found=f"{size / GIB:.1f} GiB on {node}, the least", fix=fix)


def _storage(storage: str, reports: list[Report]) -> Finding:
    bad = [report for report in reports if report.storage]
    return Finding(
        check="storage",
        ok=not bad,
        found=_by_node(bad, lambda report: report.storage) if bad else f"{storage}: write, list, read, delete",
        fix="give the nodes a role that may Put, Get, List and Delete there (instance profile, IRSA), check AWS_REGION "
        "and AWS_ENDPOINT_URL; a local path must be the same shared folder on every node",
    )


def _weights(weights: str, sha256: str | None, reports: list[Report]) -> Finding:
    bad, known = [report for report in reports if report.weights], expected_hash(weights, sha256)
    good = f"{weights}: sha256 {f'{known[:8]}... as expected' if known else 'not checked, none was given'}"
    return Finding(
        check="extractor weights",
        ok=not bad,
        found=_by_node(bad, lambda report: report.weights) if bad else good,
        fix="download them again to a place all nodes see, or give the right --sha256; an FID with other weights "
        "compares with nothing",
    )


def _by_node(reports: list[Report], what: Callable[[Report], str]) -> str:
    groups: dict[str, list[str]] = {}
    for report in reports:
        groups.setdefault(what(report), []).append(report.node)
    return "; ".join(
        f"{value} on {', '.join(nodes[:4])}{', ...' if len(nodes) > 4 else ''}" for value, nodes in groups.items()
    )


def skew(sent: float, there: float, received: float) -> float:
    """How far a clock surely is from ours, in s: it was read between ``sent`` and ``received``."""
    return max(0.0, sent - there, there - received)


def _clocks(nodes: list[Node]) -> Finding:
    """A second task on each node, whose process is up by now, so that the bracket around its clock is narrow."""
    replies = ask_nodes(nodes, lambda node: on(node, clock).remote())
    skews = [(skew(each.sent, each.answer, each.received), each.node["NodeManagerAddress"]) for each in replies.heard]
    worst, where = max(skews, default=(0.0, ""))
    found = f"{worst:.1f} s apart or more on {where}" if worst else "agree"
    if replies.silent:
        found = f"not read on {_lost(replies.silent)}; the others: {found}"
    return Finding(
        check="clocks",
        ok=worst <= MAX_SKEW_S and not replies.silent,
        found=found,
        fix="run chrony or ntpd on the nodes; S3 refuses requests that are minutes off",
    )


def _ports(nodes: list[Node]) -> Finding:
    """Each node connects to a port the next one opens, all at once."""
    listeners = {node["NodeID"]: ray.remote(**pinned(node["NodeID"]))(Listener).remote() for node in nodes}
    opened = ask_nodes(nodes, lambda node: listeners[node["NodeID"]].address.remote())
    ports = opened.heard
    target = {each.node["NodeID"]: after for each, after in zip(ports, ports[1:] + ports[:1], strict=True)}
    tried = ask_nodes(
        [each.node for each in ports], lambda node: on(node, connect).remote(target[node["NodeID"]].answer)
    )
    for listener in listeners.values():
        ray.kill(listener)
    failures = [
        f"{each.node['NodeManagerAddress']} -> {':'.join(map(str, target[each.node['NodeID']].answer))}: {each.answer}"
        for each in tried.heard
        if each.answer
    ]
    if gone := opened.silent | tried.silent:
        failures.append(f"not tried on {_lost(gone)}")
    return Finding(
        check="ports",
        ok=not failures,
        found="; ".join(failures) if failures else f"open between nodes ({len(ports)} pairs tried)",
        fix="nodes must reach each other on all ports (gloo and NCCL pick theirs): open the group to itself, and set "
        "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME where a node has several networks",
    )


def _lost(nodes: dict[str, str]) -> str:
    return ", ".join(f"{node[:6]} ({why})" for node, why in nodes.items())


def authentication(reports: list[Report], dashboard_host: str) -> Finding:
    """Token mode everywhere: without it, whoever reaches a port of any of Ray's processes can run code. They listen on
    every address, also where the job API (``dashboard_host``, '' without one) does not."""
    if {report.auth for report in reports} == {"token"}:
        return Finding(check="authentication", ok=True, found="token on every node")
    auth = _by_node(reports, lambda report: report.auth)
    return Finding(
        check="authentication",
        ok=False,
        found=f"RAY_AUTH_MODE is {auth}; job API on {dashboard_host or 'no port'}",
        fix="anyone who reaches this cluster can run code on it: start every node with RAY_AUTH_MODE=token and one "
        "token",
    )
