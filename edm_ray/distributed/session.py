"""Connect to Ray for the length of a command: a cluster, by its address or RAY_ADDRESS, else a local Ray of its own.

A local Ray listens on every address of the machine, so it asks for a token: a random one of its own, whatever the
user's RAY_AUTH_MODE says. A cluster that is attached to keeps the user's settings.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from edm_ray.distributed.own_ray import own_ray_watched
from edm_ray.distributed.patience import patience_here
from edm_ray.distributed.ray_private import (
    apart_from_terminal,
    private_session,
    read_authentication_again,
    sends_token,
    set_defaults,
    set_start_patience,
    without_idle_daemons,
)
from edm_ray.distributed.session_folder import private_folder
from edm_ray.errors import InputError
from edm_ray.execution import activity
from edm_ray.execution.stopping import asked, check, sigterm_waits

_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_own_local = False
STARTS, PAUSE_S = 3, 5.0
"""A Ray of this machine that was not up in time is started again, after a pause."""
logger = logging.getLogger(__name__)


def is_own_local_ray() -> bool:
    """Whether this process is connected to a local Ray that `session` started: all in it is this command's."""
    return _own_local


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """Ray for the length of a command; a session that is already open is used and left open.

    ``address``: HOST:PORT of a cluster; without it RAY_ADDRESS, and without that a local Ray is started. Raises
    InputError where the cluster cannot be reached.
    """
    global _own_local
    if ray.is_initialized():
        yield
        return
    local = not (address or os.environ.get("RAY_ADDRESS"))
    set_defaults(local=local)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    with ExitStack() as ends:
        with sigterm_waits(), _own_sigterm():
            if local:
                silent_s = patience_here().silent_s
                _start_local(ends)
                ends.enter_context(own_ray_watched(silent_s))  # to be left before Ray is ended
            else:
                _connect(address)
                ends.callback(ray.shutdown)
        for name in ("ray.train", "ray.tune", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        _own_local = local
        try:
            yield
        finally:
            _own_local = False


def _start_local(ends: ExitStack) -> None:
    """Start a Ray of this machine; ``ends`` stops it, then removes its folder."""
    folder = ends.enter_context(private_folder())
    ends.callback(read_authentication_again)  # after the end: what the user has set holds again
    # Logical CPUs of a local Ray: the demo and the tests need 2 or more on any machine.
    cpus = os.environ.get("EDM_RAY_LOCAL_CPUS")
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # workers of a training talk over loopback, without a token
    ends.callback(ray.shutdown)  # also of one that has started in part
    activity.stage("starting Ray, about 15 s")
    with _token_mode(), apart_from_terminal(), without_idle_daemons():
        _init_patiently(num_cpus=int(cpus) if cpus else None, **private_session(folder), **_QUIET)
    if not sends_token():
        raise InputError(f"Ray {ray.__version__} was started without a token, so anyone could use it; it was ended")


def _init_patiently(**options: Any) -> None:
    """On a busy machine Ray's processes may not be up in the time that Ray gives them."""
    began = time.monotonic()
    for attempt in range(1, STARTS + 1):
        set_start_patience(attempt)
        try:
            ray.init("local", include_dashboard=False, **options)
            return
        except Exception as error:
            if "timed out" not in str(error).lower():
                raise
            ray.shutdown()
            logger.debug("the start that failed", exc_info=True)
            load, cpus = os.getloadavg()[0], os.cpu_count() or 1
            if attempt == STARTS:
                raise InputError(
                    f"Ray did not start in {time.monotonic() - began:.0f} s and {STARTS} tries: this machine is too "
                    f"busy (load {load:.0f} on {cpus} CPUs); run it again when less runs here, or with --workers 0"
                ) from error
            activity.stage(f"starting Ray again, with more patience: this machine is busy (load {load:.0f})")
            time.sleep(PAUSE_S * attempt)


@contextmanager
def _token_mode() -> Iterator[None]:
    """Ray's processes that start meanwhile ask for a token that only they and this process know. Other programs that
    this process starts later do not get it."""
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        read_authentication_again()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _connect(address: str | None) -> None:
    """To the cluster at ``address``, or where Ray finds it in RAY_ADDRESS."""
    try:
        ray.init(address, **_QUIET)
    except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
        raise InputError(_no_connection(address or f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}", error)) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """What this command does on SIGTERM, if it does something, stays: `ray.init` would have it exit instead, also while
    it starts where a thread of a library hears the signal."""
    handler: Callable[..., Any] | Any = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as ended:
        if ended.code != signal.SIGTERM and asked() is None:
            raise
        handler(signal.SIGTERM, None)
        check()
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _no_connection(cluster: str, error: Exception) -> str:
    """Ray says the same of a cluster that is not there and of one that refuses the token."""
    why = str(error).strip().splitlines()[0].split(". ")[0]
    return (
        f"{cluster}: could not connect to Ray: {why}; is the cluster up, and the port open? A cluster that "
        "asks for a token needs RAY_AUTH_MODE=token and its token here: RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
    )
