"""What is looked at on one node: all of it by `edm-ray doctor`, the quick part before a run starts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import ray

import edm_ray
from edm_ray.distributed.cluster.storage_check import check_storage
from edm_ray.errors import InputError
from edm_ray.storage import uris


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the doctor looks at beside what it always does."""

    storage: str | None = None
    weights: str | None = None
    sha256: str | None = None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one node has and can do."""

    node: str
    versions: dict[str, str]
    gpus: tuple[str, ...]
    cpus: float
    memory: int
    """Bytes that are free (of the container, where it has a limit)."""
    disk: int
    """Bytes free where Ray keeps its session."""
    shm: int
    auth: str
    storage: str = ""
    """What went wrong at the storage; empty when nothing did."""
    weights: str = ""


@dataclass(frozen=True, kw_only=True)
class QuickReport:
    """What must be right on a node before work begins there."""

    node: str
    versions: dict[str, str]
    storage: str
    """What went wrong at the storage; empty when nothing did."""
    unseen: tuple[str, ...]
    """Folders that are not there."""


def source_hash() -> str:
    """Hash of the package's own source files: two nodes with the same version may still run different code."""
    digest = hashlib.sha256()
    root = Path(edm_ray.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:10]


def _free_memory() -> int:
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    free = int(rows["MemAvailable"].split()[0]) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def expected_hash(weights: str, sha256: str | None) -> str | None:
    """What was given, else the first digits that the file's name ends with (`...-6726825d.pth`)."""
    named = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", weights.rsplit("/", 1)[-1])
    return sha256 or (named.group(1) if named else None)


def check_weights(weights: str, sha256: str | None) -> str:
    """Whether the extractor's weights are there and are the right ones; what is wrong, or ''."""
    try:
        found = hashlib.sha256(uris.read_bytes(weights)).hexdigest()
    except (OSError, InputError) as error:
        return f"missing: {' '.join(str(error).split())[:200]}"
    expected = expected_hash(weights, sha256)
    if expected is not None and not found.startswith(expected):
        return f"wrong: sha256 is {found[:16]}..., expected {expected[:16]}"
    return ""


def versions() -> dict[str, str]:
    """What must be the same on all nodes. Without importing torch, which takes seconds."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "ray": ray.__version__,
        "torch": importlib.metadata.version("torch"),
        "edm_ray": f"{edm_ray.__version__} ({source_hash()})",
    }


def name_of_this_node() -> str:
    """Its address and the first digits of its id: two nodes may have one address."""
    return f"{ray.util.get_node_ip_address()}/{ray.get_runtime_context().get_node_id()[:6]}"


def quick_probe(storage: str, token: str, reads: tuple[str, ...]) -> QuickReport:
    """What must be right on the node this runs on before work begins there; quick."""
    return QuickReport(
        node=name_of_this_node(),
        versions=versions(),
        storage=check_storage(storage, token, uuid.uuid4().hex[:8]),
        unseen=tuple(uri for uri in reads if not _seen(uri)),
    )


def _seen(uri: str) -> bool:
    try:
        return uris.exists(uri)
    except (OSError, InputError):
        return False


def probe(question: Question, token: str, temp_dir: str) -> Report:
    """Everything about the node this runs on."""
    import torch

    devices = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    place = temp_dir if Path(temp_dir).is_dir() else "/tmp"
    return Report(
        node=name_of_this_node(),
        versions=versions(),
        gpus=devices,
        cpus=float(os.cpu_count() or 0),
        memory=_free_memory(),
        disk=shutil.disk_usage(place).free,
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        auth=os.environ.get("RAY_AUTH_MODE", "unset"),
        storage="" if question.storage is None else check_storage(question.storage, token, uuid.uuid4().hex[:8]),
        weights="" if question.weights is None else check_weights(question.weights, question.sha256),
    )


def clock() -> float:
    """This node's, in seconds since 1970."""
    return time.time()


class Listener:
    """A port on one node, for another to connect to: what DDP's workers will do with each other."""

    def __init__(self) -> None:
        self.socket = socket.create_server((ray.util.get_node_ip_address(), 0), backlog=8)

    def address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()[:2]
        return str(host), int(port)


def connect(address: tuple[str, int]) -> str:
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError as error:
        return str(error)
    return ""
