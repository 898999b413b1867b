"""Connect to Ray quietly: the cluster that RAY_ADDRESS names or a job runs in, else a local one for this command."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from edm_ray.errors import InputError

# Read by Ray at import of its subpackages or at start of its processes, so set before `ray.init`.
_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # report() is throttled by this poll
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the sweep names its loggers
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def session() -> Iterator[None]:
    """Ray for the length of a command; a session that is already open is used and left open."""
    if ray.is_initialized():
        yield
        return
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    local = not os.environ.get("RAY_ADDRESS")
    arguments: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if local:
        # As many idle processes are kept; by default one a CPU, and then each FID of a sweep waits for a new process
        # that imports torch.
        os.environ.setdefault("RAY_num_workers_soft_limit", "32")
        # The one node is this machine: where it is too busy to answer (30 s by default) it is slow, and not lost.
        os.environ.setdefault("RAY_health_check_failure_threshold", "120")
        arguments |= {"include_dashboard": False, "address": "local"}
        if cpus := os.environ.get("EDM_RAY_LOCAL_CPUS"):
            # Logical CPUs of a local Ray: the demo and the tests need 2 or more on any machine.
            arguments["num_cpus"] = int(cpus)
    told = _own_handler()
    try:
        ray.init(**arguments)
    except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
        if local:
            raise  # not an address that somebody gave
        raise InputError(_no_connection(os.environ["RAY_ADDRESS"], error)) from error
    if told is not None:
        signal.signal(signal.SIGTERM, told)
    for name in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _own_handler() -> Callable[..., Any] | None:
    """What this command does on SIGTERM, if it does something: Ray would exit instead."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if callable(handler) and threading.current_thread() is threading.main_thread() else None


def _no_connection(address: str, error: Exception) -> str:
    """Ray says the same of a cluster that is not there and of one that refuses the token."""
    why = str(error).strip().splitlines()[0].split(". ")[0]
    return (
        f"RAY_ADDRESS={address}: could not connect to Ray: {why}; is the cluster up, and the port open? A cluster that "
        "asks for a token needs RAY_AUTH_MODE=token and its token here: RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
    )
