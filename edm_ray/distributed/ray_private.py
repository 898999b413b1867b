"""All private or undocumented parts of Ray that edm_ray uses: a function each, why it is used, what is lost without.

Public names of Ray are used where the work is done; nothing here is. Each function was seen to work with the versions
in SEEN_WITH. Where another version lacks a name, the function falls back and says so once (`_private`), or refuses
where going on would be unsafe. `tests/distributed/test_ray_private.py` shows the effect of each, and `make test-next`
runs it with the newest Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from edm_ray.errors import InputError

logger = logging.getLogger(__name__)
SEEN_WITH = ("2.60.0",)


@cache
def _private(module: str, name: str, without: str) -> Any:
    """``name`` of a module inside Ray; None where this Ray has no such name, and then ``without`` is said, once."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        logger.warning("Ray %s has no %s.%s: %s", ray.__version__, module, name, without)
        return None


# --- variables that Ray reads when its subpackages are imported or its processes start: set before `ray.init`

QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # ray.train.report() waits for this poll of the controller (2 s)
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune prints no tables
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning that CUDA_VISIBLE_DEVICES is left alone
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is heard by `stopping`; Tune would end as if all were done
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the sweep names its loggers
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
LOCAL = {
    # As many idle processes are kept; with the default, one a CPU, each FID of a sweep waits for a new one that imports
    # torch.
    "RAY_num_workers_soft_limit": "32",
    # The one node is this machine: where it is too busy to answer (30 s by default) it is slow, and not lost.
    "RAY_health_check_failure_threshold": "120",
    # Prometheus' ports, which ask for no token: Ray takes a port that cannot be for none, and writes so to its log.
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}


def set_defaults(*, local: bool) -> None:
    """Variables that make Ray quiet and quick; what the user has set stays. Without one: slower, or more to read."""
    for name, value in (QUIET | LOCAL if local else QUIET).items():
        os.environ.setdefault(name, value)


def set_start_patience(factor: int) -> None:
    """How long Ray's processes of this machine wait for each other when they start: so many times as long as Ray does.

    A busy machine needs more than the defaults (30 s each). Without: the same wait again.
    """
    for name, usual in (("RAY_raylet_start_wait_time_s", 30), ("RAY_gcs_server_port_wait_time_s", 30)):
        os.environ[name] = str(max(usual * factor, int(os.environ.get(name, 0))))
    name = "RAY_agent_register_timeout_ms"
    os.environ[name] = str(max(30_000 * factor, int(os.environ.get(name, 0))))


def shorten_group_start(seconds: int = 40) -> None:
    """A group of workers that waits for a node that is gone gives up after this long, unless the user says otherwise.

    Ray Train's default is 60 s; a start takes 20 to 30 s. Without: an elastic training loses 20 s more with a node.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(seconds))


# --- Ray Train


def trainer_without_idle_process() -> type[Any]:
    """`TorchTrainer` that leaves Ctrl-C alone, starts no DatasetManager where ``datasets`` is empty, and ends a
    controller that it can no longer reach.

    Ray Train starts that process with every group of workers. It imports what a worker imports, at the moment when the
    workers do: after a kill, one import in three. Without: a few seconds more to the first step.
    """
    from ray.train.torch import TorchTrainer

    module = "ray.train.v2._internal.callbacks.datasets"
    manager = _private(module, "DatasetsCallback", "each group of workers starts a process it has no use for")

    class Trainer(TorchTrainer):  # type: ignore[misc]
        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray Train would take Ctrl-C for itself, end without a checkpoint, and leave its handler behind, which
            keeps the controller's process. `stopping` hears of Ctrl-C."""
            self.controller = controller

        def fit(self) -> Any:
            """After a broken connection the controller may live, and would hold its workers' CPUs beside the next. Ray
            Train gives it away in the main thread only: elsewhere it stays."""
            try:
                return super().fit()
            except ray.exceptions.RayActorError:
                if self.controller is not None:
                    ray.kill(self.controller)
                raise
            finally:
                self.controller = None  # or its process would stay

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if self.datasets or manager is None or not isinstance(each, manager)]

    return Trainer


def backend_that_first_runs(
    in_workers: Callable[[Any], None], in_controller: Callable[[Any], None] = lambda config: None
) -> type[Any]:
    """For `TorchConfig.backend_cls`: its backend, whose workers run ``in_workers(config)``, before the process group is
    made, and Ray Train's controller ``in_controller(config)``.

    The class is private (`_TorchBackend`), and so is the group of workers handed to it. Nothing public runs in each
    worker before `init_process_group`. Without: gloo listens where the machine's own name points (see `network`).
    """
    from ray.train.torch import TorchConfig

    base = TorchConfig().backend_cls

    class Backend(base):  # type: ignore[misc, valid-type]
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            in_controller(backend_config)
            worker_group.execute(in_workers, backend_config)
            super().on_start(worker_group, backend_config)

    return Backend


def own_node_is_drained() -> bool:
    """In a training worker: whether Ray was told that a node of its group is about to go (spot notice, drain).

    `ray.train.get_preemption_info` says the same, but as a barrier of all workers, which a step cannot afford.
    Without: False, so no checkpoint is made ahead of the loss, and the steps since the last one are done again.
    """
    where, without = "ray.train.v2._internal.execution.context", "notices that a node will go are not heard"
    context = _private(where, "get_train_context", without)
    try:
        return context is not None and context().preemption_context.preemption_info is not None
    except AttributeError:
        _private(where, "TrainContext.preemption_context", without)  # no such name either: said once
        return False


def refresh_known_nodes() -> None:
    """Make the AutoscalingCoordinator, with whose list of nodes Ray Train plans groups, read that list now.

    It does so every 20 s by itself. Without: a group may be planned with a node that is gone, and then waits out its
    start timeout; nothing else changes.
    """
    module = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"
    coordinator = _private(module, "get_or_create_autoscaling_coordinator", "a lost node may cost a start timeout")
    if coordinator is None:
        return
    try:
        ray.get(coordinator().get_reserved_resources.remote("edm_ray", recompute=True), timeout=30)
    except (AttributeError, TypeError) as error:
        logger.warning("Ray %s: %s; a lost node may cost a start timeout", ray.__version__, error)


def remove_placement_groups() -> None:
    """Remove every placement group of this cluster. Only for a Ray that this command started for itself.

    A dead controller's workers keep their CPUs as a placement group, which Ray Train removes by way of the dashboard;
    a local Ray has none. Handles of groups that others made can only be built with Ray's own constructor. Without: the
    next group of workers waits for CPUs that nobody gives back.
    """
    number_of = _private("ray", "PlacementGroupID", "what a killed controller held stays taken")
    if number_of is None:
        return
    for number, group in ray.util.placement_group_table().items():
        if group["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(number_of(bytes.fromhex(number))))


# --- Ray Tune


def keep_aws_keys_out_of_trials() -> None:
    """Tune copies AWS keys from this environment into its trials' runtime environment, which Ray writes to its logs.

    Nodes have credentials of their own. Where this Ray keeps the list of variables elsewhere, raises InputError if
    there is a key to leak.
    """
    try:
        module: Any = importlib.import_module("ray.tune.execution.class_cache")
        names = module.ENV_VARS_TO_PROPAGATE
    except (ImportError, AttributeError) as error:
        if "AWS_SECRET_ACCESS_KEY" in os.environ:
            raise InputError(
                f"Ray {ray.__version__} may write AWS_SECRET_ACCESS_KEY to its logs in a sweep; unset it and use a "
                f"role or a profile, or install a Ray that edm_ray was tested with: {', '.join(SEEN_WITH)}"
            ) from error
        return
    module.ENV_VARS_TO_PROPAGATE = {name for name in names if "AWS_" not in name}


# --- Ray's processes and signals


@contextlib.contextmanager
def apart_from_terminal() -> Iterator[None]:
    """Ray's processes that start meanwhile get a session of their own, so what a terminal that closes and `kill` or
    `timeout` send to a whole group of processes reaches the command alone, which ends them in good order.

    Ray starts them with a subclass of Popen. Without: a closed terminal ends Ray at once, and what was done since the
    last checkpoint is lost.
    """
    module = "ray._private.services"
    base = _private(module, "ConsolePopen", "when the terminal is closed, Ray ends before there is a checkpoint")
    if base is None:
        yield
        return
    services: Any = importlib.import_module(module)

    class Apart(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            first = options.get("preexec_fn")

            def prepare() -> None:
                if first is not None:
                    first()
                # SIGTERM waits in this process meanwhile, and a child inherits that.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

            super().__init__(*args, **{**options, "preexec_fn": prepare, "start_new_session": True})

    services.ConsolePopen = Apart
    try:
        yield
    finally:
        services.ConsolePopen = base


# --- Ray's core

KEYS = "edm_ray"


def put_key(key: str) -> None:
    """Set a key in the store of Ray's head, which every node reaches and which costs no process.

    An actor would do the same, for a process and its imports. Used to tell workers to stop; see `has_key`.
    """
    _kv("_internal_kv_put")(key, b"1", namespace=KEYS)


def has_key(key: str) -> bool:
    """Whether a key is set; raises where the head does not answer. Without: SIGTERM to the command is not passed on."""
    return _kv("_internal_kv_get")(key, namespace=KEYS) is not None


def put_value(key: str, value: bytes) -> None:
    """As `put_key`. Without: nobody sees who of a training is stuck."""
    _kv("_internal_kv_put")(key, value, namespace=KEYS)


def get_value(key: str) -> bytes | None:
    """Raises where the head does not answer."""
    found: bytes | None = _kv("_internal_kv_get")(key, namespace=KEYS)
    return found


def delete_key(key: str) -> None:
    """Remove a key that was set or not."""
    _kv("_internal_kv_del")(key, namespace=KEYS)


def _kv(name: str) -> Callable[..., Any]:
    without = "workers are not told to stop; the last checkpoint is where the next run resumes"
    found = _private("ray.experimental.internal_kv", name, without)
    return found or (lambda *_, **__: None)


def free_resources() -> list[dict[str, float]]:
    """What nobody holds at this moment, node by node.

    Ray's public `available_resources` gives only the sum, and a worker must fit on one node. Without: that sum, as
    though the cluster were one node, so work that fits on no single node waits in place of being refused.
    """
    without = "free resources are counted as though the cluster were one node"
    per_node = _private("ray._private.state", "available_resources_per_node", without)
    return [ray.available_resources()] if per_node is None else list(per_node().values())


def run_in_actor(actor: Any, function: Callable[..., Any]) -> Any:
    """A reference to what ``function(actor's own object)`` returns, called in the actor's process.

    For fault tests, which need process ids from actors that offer no such method.
    """
    return actor.__ray_call__.remote(function)


def private_session(folder: str) -> dict[str, str]:
    """For `ray.init`: what it keeps goes below ``folder``, with sockets, logs and spilled objects. Without: TypeError,
    and no local Ray."""
    return {"_temp_dir": folder}


IDLE_DAEMONS = ("start_monitor", "start_api_server", "start_log_monitor")
"""What a local Ray starts beside head and raylet: the autoscaler, the dashboard's server (also where there is to be
none), and what sends the workers' output to a driver that does not want it."""


@contextlib.contextmanager
def without_idle_daemons() -> Iterator[None]:
    """Meanwhile `ray.init` starts no process that a local Ray of one node has no use for; it would wait for them.

    Without, or where Ray calls one of them otherwise: `ray.init` takes longer, with a process more for each.
    """
    node = _private("ray._private.node", "Node", "a local Ray starts more slowly")

    def start_nothing(self: Any, **options: Any) -> None:
        """Asked for the dashboard's address later."""
        self._webui_url = None

    with contextlib.ExitStack() as undo:
        for name in IDLE_DAEMONS:
            if (method := getattr(node, name, None)) is not None:
                setattr(node, name, start_nothing)
                undo.callback(setattr, node, name, method)
        yield


def read_authentication_again() -> None:
    """RAY_AUTH_MODE and RAY_AUTH_TOKEN are read now; Ray reads them once, at its import or the first connection.

    Without: what was read first holds. `session` looks whether a local Ray sends a token, and ends it otherwise.
    """
    without = "authentication is as it was when Ray was imported"
    config = _private("ray._raylet", "Config", without)
    loader = _private("ray._raylet", "AuthenticationTokenLoader", without)
    if config is not None and loader is not None:
        config.initialize("")
        loader.instance().reset_cache()


def own_daemons() -> dict[str, int]:
    """Process ids of the raylet and the head ("gcs_server") that this process has started.

    Without: none, and a command waits for minutes for a Ray of its own that was killed.
    """
    started = (getattr(_own_node(), "all_processes", None) or {}) if ray.is_initialized() else {}
    return {name: started[name][0].process.pid for name in ("raylet", "gcs_server") if started.get(name)}


def session_folder() -> str:
    """Where Ray keeps sessions on this node (``--temp-dir``), to look whether there is disk left. Without: /tmp/ray."""
    node = _own_node()
    try:
        return str(node.get_temp_dir_path())
    except AttributeError:
        return "/tmp/ray"


def dashboard_address() -> str:
    """HOST:PORT of the job API of the cluster this process is connected to; '' where there is none.

    `ray.init` returns it, but only to whoever called it. Without: '', and the doctor takes the job API for closed only
    where the cluster is one machine.
    """
    try:
        return str(_own_node().address_info.get("webui_url") or "")
    except AttributeError:
        return ""


def _own_node() -> Any:
    worker = _private("ray._private.worker", "global_worker", "the doctor sees no job API, and looks at /tmp/ray")
    return getattr(worker, "node", None)


# --- Ray's job client


def sends_token() -> bool:
    """Whether Ray's clients in this process send a token. Without: whether RAY_AUTH_MODE (documented) is token."""
    module = "ray._private.authentication.authentication_utils"
    enabled = _private(module, "is_token_auth_enabled", "RAY_AUTH_MODE alone says whether a token is sent")
    return os.environ.get("RAY_AUTH_MODE") == "token" if enabled is None else bool(enabled())


def job_api_of(address: str) -> str:
    """http://HOST:PORT of the job API of the cluster at HOST:PORT, which is what RAY_ADDRESS holds on a node.

    Without: InputError, which asks for the URL.
    """
    find = _private("ray.dashboard.utils", "get_address_for_submission_client", "give the job API's URL")
    if find is None:
        raise InputError(f"{address}: give the job API's URL, --address http://HOST:8265")
    return str(find(address))


def silence_job_client() -> None:
    """Ray's job client logs each upload and request below WARNING. Without these names: a few lines more to read."""
    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)


def files_that_travel(folder: Path, excludes: list[str]) -> Iterator[Path]:
    """Files below ``folder`` that Ray would upload with a job: not those of ``excludes``, .gitignore and .rayignore.

    Ray has the walk but offers no list. Without: every file that no name in ``excludes`` covers, so that at most too
    much is counted.
    """
    packaging = "ray._private.runtime_env.packaging"
    without = ".gitignore and .rayignore are not followed when the size of an upload is checked"
    walk, matcher = _private(packaging, "_dir_travel", without), _private(packaging, "_get_excludes", without)
    quiet = logging.getLogger("edm_ray.upload")
    quiet.setLevel(logging.ERROR)
    found: list[Path] = []
    try:
        if walk is not None and matcher is not None:
            walk(folder, [matcher(folder, list(excludes))], found.append, include_gitignore=True, logger=quiet)
            return (path for path in found if path.is_file())
    except TypeError:  # called otherwise in this Ray
        logger.warning("Ray %s: %s", ray.__version__, without)
    paths = (path for path in folder.rglob("*") if not _named(path.relative_to(folder), excludes))
    return (path for path in paths if path.is_file())


def _named(path: Path, patterns: list[str]) -> bool:
    return any(Path(part).match(pattern) for part in path.parts for pattern in patterns)
