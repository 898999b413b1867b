"""What can be wrong with a cluster, looked for on every node before a long job does it the hard way.

`examine` runs one probe on each node (a task pinned to it), puts the answers side by side and returns findings: a line
each, with the fix beside what failed. Nothing it writes stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import ray

from edm_ray.distributed.cluster.node_check import (
    ONE_IMAGE,
    Node,
    ask,
    living,
    marked,
    on,
    pinned,
    released,
)
from edm_ray.distributed.cluster.preflight import may_grow_to
from edm_ray.distributed.cluster.probe import Answer, Listener, Question, clock, connect, expected_hash, probe
from edm_ray.distributed.session import session

MIN_MEMORY = 1 << 30
MIN_DISK = 2 << 30
MIN_SHM = 256 << 20
MAX_SKEW_S = 2.0
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
        nodes = living()
        temp_dir = ray._private.worker.global_worker.node.get_temp_dir_path()
        with marked(question.storage) as token:
            heard, failed, late = ask(nodes, lambda node: on(node, probe).remote(question, token, temp_dir))
        answers = [each.answer for each in heard]
        there = [each.node for each in heard]
        findings = compare(question, answers, failed | late)
        findings.append(_clocks(there))
        findings.append(_ports(there))
        findings.append(authentication(answers, _dashboard_host()))
        return findings


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
        found = sorted({answer.versions[name] for answer in answers})
        same = len({released(version) for version in found}) == 1
        findings.append(
            Finding(
                check=f"version of {name}",
                ok=same,
                found=" and ".join(found) if same else _by_node(answers, lambda a, name=name: a.versions[name]),
                fix=f"{ONE_IMAGE}: {name} must be the same everywhere",
            )
        )
    gpus = [answer.gpus for answer in answers]
    kinds = sorted({name for names in gpus for name in names})
    to_come = int(may_grow_to("GPU"))
    none = f"no GPU now; the autoscaler may bring {to_come}" if to_come else "no GPU; CPUs only"
    findings.append(
        Finding(
            check="devices",
            ok=bool(kinds or to_come) or question.device != "cuda",
            found=f"{sum(map(len, gpus))} GPUs ({', '.join(kinds)})" if kinds else none,
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


def _clocks(nodes: list[Node]) -> Finding:
    """A second task on each node, whose process is up by now, so that the bracket around its clock is narrow."""
    heard, failed, late = ask(nodes, lambda node: on(node, clock).remote())
    skews = [(skew(each.sent, each.answer, each.received), each.node["NodeManagerAddress"]) for each in heard]
    worst, where = max(skews, default=(0.0, ""))
    found = f"{worst:.1f} s apart or more on {where}" if worst else "agree"
    if gone := failed | late:
        found = f"not read on {_lost(gone)}; the others: {found}"
    ok = worst <= MAX_SKEW_S and not gone
    fix = "" if ok else "run chrony or ntpd on the nodes; S3 refuses requests that are minutes off"
    return Finding(check="clocks", ok=ok, found=found, fix=fix)


def _ports(nodes: list[Node]) -> Finding:
    """Each node connects to a port the next one opens, all at once."""
    listeners = {node["NodeID"]: ray.remote(**pinned(node))(Listener).remote() for node in nodes}
    opened, failed, late = ask(nodes, lambda node: listeners[node["NodeID"]].address.remote())
    ring = list(zip(opened, opened[1:] + opened[:1], strict=True))
    target = {each.node["NodeID"]: following for each, following in ring}
    tried, broken, slow = ask(
        [each.node for each in opened], lambda node: on(node, connect).remote(target[node["NodeID"]].answer)
    )
    for listener in listeners.values():
        ray.kill(listener)
    failures = [
        f"{each.node['NodeManagerAddress']} -> {':'.join(map(str, target[each.node['NodeID']].answer))}: {each.answer}"
        for each in tried
        if each.answer
    ]
    if gone := failed | late | broken | slow:
        failures.append(f"not tried on {_lost(gone)}")
    fix = "nodes must reach each other on all ports (gloo and NCCL pick theirs): open the group to itself, and set "
    fix += "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME where a node has several networks"
    found = "; ".join(failures) if failures else f"open between nodes ({len(ring)} pairs tried)"
    return Finding(check="ports", ok=not failures, found=found, fix=fix if failures else "")


def _lost(nodes: dict[str, str]) -> str:
    return ", ".join(f"{node[:6]} ({why})" for node, why in nodes.items())


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
