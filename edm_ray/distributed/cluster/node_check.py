"""Ask every living node the same thing at the same time, and make sure that work can begin on them.

`ask` runs a task pinned to each node; it needs no resources, so a busy cluster can be asked too. The doctor asks for
everything (doctor.py); `require_nodes` asks, before a run starts, for what would otherwise fail minutes into it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edm_ray.distributed.cluster.preflight import Ask
from edm_ray.distributed.cluster.probe import MARKER, Standing, stand, versions
from edm_ray.distributed.shipping import environment
from edm_ray.errors import InputError
from edm_ray.storage import uris

logger = logging.getLogger(__name__)
ASK_TIMEOUT_S = 120.0
PREFLIGHT_TIMEOUT_S = 20.0
"""A node that has not answered by then is slow, not wrong: the run goes on, with a warning."""
ONE_IMAGE = "use one image on all nodes"
SHARED = (
    "give s3:// or one shared folder, and the nodes a role that may Put, Get, List and Delete there; "
    "`edm-ray doctor --storage` says more"
)
Node = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """One node's answer, and between which moments of our clock it was given."""

    node: Node
    answer: Any
    sent: float
    received: float


def living() -> list[Node]:
    return [node for node in ray.nodes() if node["Alive"]]


def pinned(node: Node) -> dict[str, Any]:
    """Options of a task or actor that runs on that node and needs nothing of it."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}


def on(node: Node, function: Callable[..., Any]) -> Any:
    """A task pinned to a node, in the environment that work gets. A process that dies is no verdict on its node."""
    return ray.remote(max_retries=2, runtime_env=environment() or None, **pinned(node))(function)


def ask(
    nodes: list[Node], start: Callable[[Node], Any], timeout: float = ASK_TIMEOUT_S
) -> tuple[list[Heard], dict[str, str], dict[str, str]]:
    """What was heard, in the order of node ids; why some gave an error; and which were late (both by node id)."""
    sent, deadline = time.time(), time.monotonic() + timeout
    asked = {start(node): node for node in nodes}
    waiting, heard, failed = list(asked), [], {}
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        node, received = asked[ready[0]], time.time()
        try:
            heard.append(Heard(node, ray.get(ready[0]), sent, received))
        except ray.exceptions.RayError as error:
            failed[node["NodeID"]] = str(error).strip().splitlines()[-1][:200]
    late = {asked[reference]["NodeID"]: f"no answer in {timeout:g} s" for reference in waiting}
    return sorted(heard, key=lambda each: each.node["NodeID"]), failed, late


@contextmanager
def marked(storage: str | None) -> Iterator[str]:
    """A token, which this process leaves at ``storage`` for the nodes to find; nothing stays.

    A place that cannot be written to is left to the nodes to complain about: they know more about it.
    """
    token = uuid.uuid4().hex
    marker = None if storage is None else uris.join(storage, f"{MARKER}{token}")
    try:
        if marker is not None:
            try:
                uris.write_bytes(uris.join(marker, "driver"), token.encode())
            except (OSError, InputError):
                marker = None
        yield token
    finally:
        if marker is not None:
            uris.delete_directory(marker)


def require_nodes(work: Ask, storage: str, reads: tuple[str, ...] = ()) -> None:
    """Refuse to start on nodes that run other code, do not share ``storage`` or cannot see what is in ``reads``.

    Only nodes that could hold a worker are asked, and none when this is the only one: what it can do, it has done.
    Nodes that an autoscaler brings later are not known yet.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in living() if work.fits(node["Resources"])]
    if not [node for node in nodes if node["NodeID"] != here]:
        return
    with marked(storage) as token:
        heard, failed, late = ask(
            nodes, lambda node: on(node, stand).remote(storage, token, reads), timeout=PREFLIGHT_TIMEOUT_S
        )
    for node, why in late.items():
        logger.warning("node %s: %s; the run starts without its answer", node[:6], why)
    if failed:
        node, why = next(iter(failed.items()))
        raise InputError(f"node {node[:6]} cannot run edm_ray: {why}; {ONE_IMAGE}, see `edm-ray doctor`")
    if wrong := next(filter(None, (objection(each.answer, versions()) for each in heard)), None):
        raise InputError(wrong)


def objection(node: Standing, ours: dict[str, str]) -> str | None:
    """Why work must not begin on a node, with what to do; None when it may."""
    for name, version in ours.items():
        if released(node.versions[name]) != released(version):
            return f"node {node.node}: {name} is {node.versions[name]}, here it is {version}; {ONE_IMAGE}"
    if node.storage:
        return f"node {node.node} and the results: {node.storage}; {SHARED}"
    if node.unseen:
        return f"node {node.node} does not see {', '.join(node.unseen)}; {SHARED}"
    return None


def released(version: str) -> str:
    """A version without its build ("2.13.0+cu128" -> "2.13.0"): CPU and GPU images differ in that, and may."""
    return version.partition("+")[0]
