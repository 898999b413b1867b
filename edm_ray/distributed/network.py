"""Which network interface the workers of a training talk over: the one that carries their node's Ray address.

gloo takes the address that the machine's own name resolves to. Where that is loopback (Debian's 127.0.1.1, containers,
network namespaces), workers on two nodes look for each other on themselves and fail. By its Ray address a node is
reached from every other, so that interface is named before the process group is made.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

from edm_ray.distributed.heart import CONTROLLER, start_heart, start_in_rank
from edm_ray.distributed.ray_private import backend_that_first_runs

VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
"""Linux: ask for an interface's IPv4 address."""


def interface_of(address: str) -> str | None:
    """Name of the interface that has this IPv4 address, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # an interface without an address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def use_own_interface() -> None:
    """In a worker: gloo listens where Ray reaches this node, unless the user has named an interface."""
    if VARIABLE not in os.environ and (name := interface_of(ray.util.get_node_ip_address())):
        os.environ[VARIABLE] = name


def _in_worker(config: NodeNetwork) -> None:
    use_own_interface()
    if config.watch:
        start_in_rank(config.watch)


def _in_controller(config: NodeNetwork) -> None:
    if config.watch:
        start_heart(config.watch, CONTROLLER)


@dataclass
class NodeNetwork(TorchConfig):
    """`TorchConfig` whose workers find each other by their nodes' addresses, and give signs of life.

    timeout_s: of the collectives.
    """

    watch: str = ""
    """Key of the signs; '' for none."""

    @property
    def backend_cls(self) -> type[Any]:
        return _Backend


_Backend = backend_that_first_runs(_in_worker, _in_controller)
