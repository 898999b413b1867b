"""Network namespaces on one bridge, each with an address of its own: machines, as far as a network is concerned."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Names of this process alone, of at most 15 characters; an address range meant for tests like this (RFC 2544).
TAG = f"edm{os.getpid() % 100_000}"
NETWORK = "198.18.7"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def inside(name: str, own: Path | None = None) -> list[str]:
    """What a command begins with, to run in a namespace; with a folder of its own at ``own``, as on a disk of its own.

    Nodes that share Ray's folder delete each other's working directories of jobs.
    """
    words = ["ip", "netns", "exec", name]  # which makes a namespace of mounts, too
    if own is not None:
        words += ["sh", "-c", f'mkdir -p {own} && mount -t tmpfs none {own} && exec "$@"', "sh"]
    return words


def named(*roles: str) -> dict[str, str]:
    """Names of namespaces with these roles -> their addresses."""
    return {f"{TAG}-{role}": f"{NETWORK}.{10 + number}" for number, role in enumerate(roles)}


@contextlib.contextmanager
def network(addresses: dict[str, str]) -> Iterator[None]:
    """A bridge, and a namespace with an address on it for each name; skips the test where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    with contextlib.ExitStack() as stack:
        try:
            ip("link", "add", TAG, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"networks may not be made here: {error.stderr.strip()}")
        stack.callback(subprocess.run, ["ip", "link", "del", TAG], capture_output=True)
        ip("addr", "add", f"{NETWORK}.1/24", "dev", TAG)
        ip("link", "set", TAG, "up")
        for number, (name, address) in enumerate(addresses.items()):
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
            cable = f"{TAG}v{number}"
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            stack.callback(subprocess.run, ["ip", "link", "del", cable], capture_output=True)
            ip("link", "set", cable, "master", TAG, "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            # Ray takes for its own the address that it would reach the world with.
            ip("-n", name, "route", "add", "default", "via", f"{NETWORK}.1")
        yield
