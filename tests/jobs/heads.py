"""A Ray head of the tests' own: its ports, temporary folder, token and HOME; ended by process id, never `ray stop`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RAY = str(Path(sys.executable).with_name("ray"))
EDM_RAY = str(Path(sys.executable).with_name("edm-ray"))
REPOSITORY = Path(__file__).parents[2]

CANARY = f"canary-{secrets.token_hex(8)}"  # random: this file itself travels with the jobs
# In the environment of every head and command of these tests: none may ever be written anywhere.
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret",
    "AWS_ACCESS_KEY_ID": f"{CANARY}-id",
    "AWS_SESSION_TOKEN": f"{CANARY}-session",
    "HF_TOKEN": f"{CANARY}-hf",
}


def leaks(folder: Path) -> list[str]:
    """Files below a folder that hold the canary in their content or name."""
    found = []
    for path in folder.rglob("*"):
        if CANARY in path.name or (path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()):
            found.append(str(path))
    return found


def free_ports(count: int) -> list[int]:
    """Ports nothing listened on a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass
class Head:
    """A running head and how to reach it."""

    process: subprocess.Popen
    host: str
    gcs_port: int
    dashboard_port: int
    agent_port: int
    environment: dict[str, str]
    log: Path
    temp: Path
    """Ray's session and logs."""
    extra: list[subprocess.Popen] = field(default_factory=list)

    def get(self, path: str, timeout: float = 20) -> Any:
        """JSON of the head's HTTP API, with the token."""
        request = urllib.request.Request(f"{self.address}{path}")
        if token := self.environment.get("RAY_AUTH_TOKEN_PATH"):
            request.add_header("Authorization", f"Bearer {Path(token).read_text()}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def start(self, *command: str, **more: str) -> subprocess.Popen:
        """`edm-ray COMMAND` as a driver of this cluster; its output goes to driver.log beside the head's."""
        variables = {**self.environment, "RAY_ADDRESS": f"{self.host}:{self.gcs_port}", **more}
        with self.log.with_name("driver.log").open("ab") as output:
            return subprocess.Popen([EDM_RAY, *command], env=variables, cwd=REPOSITORY, stdout=output, stderr=output)

    def run(self, *command: str, timeout: float = 300) -> str:
        """`edm-ray COMMAND` to its end, which must be good; returns all drivers' output so far."""
        process = self.start(*command)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        output = self.log.with_name("driver.log").read_text()
        assert code == 0, output
        return output

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.dashboard_port}"

    def submit(self, *arguments: str, timeout: float = 300, **more: str) -> subprocess.CompletedProcess:
        """`edm-ray submit --address THIS ...` as a person runs it."""
        command = [EDM_RAY, "submit", "--address", self.address, *arguments]
        return subprocess.run(
            command, env={**self.environment, **more}, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout
        )


def environment(home: Path, mode: str) -> dict[str, str]:
    """Variables for a cluster of its own; in token mode the token lies below ``home``, as a person would keep it."""
    keep = {name: os.environ[name] for name in ("LANG", "TMPDIR", "PYTHONPATH") if name in os.environ}
    variables = {
        **keep,
        **SECRETS,
        # A job's `python` is this one, as it is the image's on a cluster.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_AUTH_MODE": mode,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        # A node that is gone is noticed in seconds.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_initial_delay_ms": "1000",
    }
    if mode == "token":
        path = home / "token"
        path.write_text(secrets.token_hex(32))
        path.chmod(0o600)
        variables["RAY_AUTH_TOKEN_PATH"] = str(path)
    return variables


@contextlib.contextmanager
def running_head(
    folder: Path, mode: str = "token", host: str = "127.0.0.1", prefix: Sequence[str] = (), cpus: int = 4
) -> Iterator[Head]:
    """`ray start --head --block` below ``folder``; its whole process group ends with the context."""
    home = folder / "home"
    home.mkdir(parents=True)
    ports = free_ports(6)
    variables = environment(home, mode)
    # Unix sockets have paths of at most 107 bytes, and pytest's folders are long.
    temp = Path("/tmp") / f"edm-{secrets.token_hex(4)}"
    log = folder / "head.log"
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")
    options = [f"--{name}={port}" for name, port in zip((*names, "ray-client-server-port"), ports, strict=True)]
    command = [*prefix, RAY, "start", "--head", "--block", f"--temp-dir={temp}", f"--node-ip-address={host}"]
    command += [f"--dashboard-host={host}", f"--num-cpus={cpus}", "--disable-usage-stats", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=variables, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    head = Head(process, host, ports[0], ports[1], ports[2], variables, log, temp)
    try:
        _wait_for(head)
        yield head
    finally:
        for each in [*reversed(head.extra), process]:
            end(each)
        import shutil

        shutil.rmtree(temp, ignore_errors=True)


def add_node(head: Head, cpus: int, host: str | None = None, prefix: Sequence[str] = ()) -> subprocess.Popen:
    """`ray start --address --block`: one more node of the head's cluster. Returns when it has joined."""
    known = alive_nodes(head)
    ports = free_ports(4)
    names = ("dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port", "node-manager-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command = [*prefix, RAY, "start", f"--address={head.host}:{head.gcs_port}", "--block", f"--num-cpus={cpus}"]
    command += [f"--node-ip-address={host or head.host}", "--disable-usage-stats", *options]
    with head.log.with_name(f"node-{len(head.extra)}.log").open("wb") as output:
        process = subprocess.Popen(
            command, env=head.environment, cwd=head.log.parent, stdout=output, stderr=output, start_new_session=True
        )
    head.extra.append(process)
    deadline = time.monotonic() + 120
    while not alive_nodes(head) - known:
        assert process.poll() is None and time.monotonic() < deadline, Path(output.name).read_text()
        time.sleep(0.3)
    return process


def alive_nodes(head: Head) -> set[str]:
    """Ids of the nodes the head believes in; one that was lost stays for some seconds."""
    nodes = head.get("/api/v0/nodes?detail=0")["data"]["result"]["result"]
    return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}


def wait_for_nodes(head: Head, count: int, seconds: float = 60) -> None:
    """Until the head believes in so many nodes."""
    deadline = time.monotonic() + seconds
    while (alive := alive_nodes(head)) and len(alive) != count:
        assert time.monotonic() < deadline, alive
        time.sleep(0.3)


def descendants(pid: int) -> dict[int, str]:
    """Process ids below a process, with their command lines."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                # The name in parentheses may hold spaces: the fields that count come after it.
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found, frontier = {}, {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        for child in frontier:
            with contextlib.suppress(OSError):
                found[child] = (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def lose(process: subprocess.Popen) -> None:
    """The node is gone at once, like a machine without power: every process of it, SIGKILL."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait_for(head: Head, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert head.process.poll() is None, head.log.read_text()
        with contextlib.suppress(OSError, urllib.error.URLError, KeyError, TypeError):
            if alive_nodes(head):
                return
        time.sleep(0.2)
    raise TimeoutError(head.log.read_text())


def end(process: subprocess.Popen) -> None:
    """End a head or node and all that it started, by process id."""
    lose(process)
    process.wait(20)
