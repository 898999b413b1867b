"""Before a run starts: refuse nodes that run other code, do not share the results' place or cannot see the data."""

from __future__ import annotations

import logging

import ray

from edm_ray.distributed.cluster.nodes import ask_nodes, living, on
from edm_ray.distributed.cluster.preflight import WorkerRequest
from edm_ray.distributed.cluster.probe import QuickReport, quick_probe, versions
from edm_ray.distributed.cluster.storage_check import marked
from edm_ray.errors import InputError

logger = logging.getLogger(__name__)
TIMEOUT_S = 20.0
"""A node that has not answered by then is slow, not wrong: the run starts, with a warning."""
ONE_IMAGE = "use one image on all nodes"
SHARED = (
    "give s3:// or one shared folder, and the nodes a role that may Put, Get, List and Delete there; "
    "`edm-ray doctor --storage` says more"
)


def require_nodes(work: WorkerRequest, storage: str, reads: tuple[str, ...] = ()) -> None:
    """Raises InputError where a node cannot do this work; ``reads`` are the places it must see beside ``storage``.

    Only nodes that could hold a worker are asked, and none when this is the only one: what it can do, it has done.
    Nodes that an autoscaler brings later are not known yet.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in living() if work.fits(node["Resources"])]
    if all(node["NodeID"] == here for node in nodes):
        return
    with marked(storage) as token:
        replies = ask_nodes(nodes, lambda node: on(node, quick_probe).remote(storage, token, reads), timeout=TIMEOUT_S)
    for node, why in replies.late.items():
        logger.warning("node %s: %s; the run starts without its answer", node[:6], why)
    if replies.failed:
        node, why = next(iter(replies.failed.items()))
        raise InputError(f"node {node[:6]} cannot run edm_ray: {why}; {ONE_IMAGE}, see `edm-ray doctor`")
    for reply in replies.heard:
        if wrong := why_unfit(reply.answer, versions()):
            raise InputError(wrong)


def why_unfit(node: QuickReport, ours: dict[str, str]) -> str | None:
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
