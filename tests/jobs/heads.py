"""A Ray head of the tests' own: its ports, temporary folder, token and HOME; ended by process id, never `ray stop`."""

from __future__ import annotations

import contextlib
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
    environment: dict[str, str]
    log: Path
    temp: Path
    """Ray's session and logs."""
    extra: list[subprocess.Popen] = field(default_factory=list)

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
    keep = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
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
    head = Head(process, host, ports[0], ports[1], variables, log, temp)
    try:
        _wait_for(head)
        yield head
    finally:
        for each in [*reversed(head.extra), process]:
            end(each)
        import shutil

        shutil.rmtree(temp, ignore_errors=True)


def _wait_for(head: Head, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(f"{head.address}/api/version")
    if path := head.environment.get("RAY_AUTH_TOKEN_PATH"):
        request.add_header("Authorization", f"Bearer {Path(path).read_text()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        assert head.process.poll() is None, head.log.read_text()
        with contextlib.suppress(OSError, urllib.error.URLError):
            opener.open(request, timeout=5).close()
            return
        time.sleep(0.2)
    raise TimeoutError(head.log.read_text())


def end(process: subprocess.Popen) -> None:
    """SIGTERM, so that Ray ends its own; then what is left of the process's session."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
