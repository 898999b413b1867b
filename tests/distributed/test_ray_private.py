"""Each private part of Ray that is used still does what it is used for; `make test-next` asks this of the newest Ray.

Tests without the `ray` mark start no Ray. Where the effect takes minutes to show, the docstring names the test that
shows it.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig

from edm_ray.distributed import ray_private
from edm_ray.distributed.cluster.job_checks import EXCLUDES, upload_sizes
from edm_ray.errors import InputError
from tests.processes import processes_below

PACKAGE = Path(ray_private.__file__).parents[1]
PRIVATE = re.compile(
    r"\bray\.(_(?!_version__)|experimental|dashboard)|\._internal\b|\b_raylet\b|ray\.tune\.execution|ray\.util\.state"
    r"|__ray_\w+__|_TorchBackend|DatasetsCallback|PlacementGroupID|\bRAY_[a-z]\w+|\b(RAY_TRAIN|RAY_AIR|TUNE)_[A-Z_]+"
)


@pytest.fixture
def nothing_private(monkeypatch):
    """A Ray that has renamed all of it."""
    monkeypatch.setattr(ray_private, "_private", lambda module, name, without: None)


def test_no_other_file_uses_a_private_name_of_ray():
    found = {
        f"{path.relative_to(PACKAGE)}: {match.group()}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "ray_private.py"
        for match in PRIVATE.finditer(path.read_text())
    }
    assert found == set()


def test_every_private_name_is_there_now():
    """What `_private` is asked for anywhere in the file, from this Ray."""
    missing = [
        (module, name) for module, name in _names_asked_for() if ray_private._private(module, name, "(a test)") is None
    ]
    assert missing == [] and len(_names_asked_for()) >= 12


def _names_asked_for() -> list[tuple[str, str]]:
    """Arguments of `_private` that are text, or names which a function sets to text just before."""
    tree, found = ast.parse(Path(ray_private.__file__).read_text()), []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        texts: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target, value in _pairs(node):
                    if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                        texts[target.id] = value.value
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_private":
                module, name = (
                    each.value if isinstance(each, ast.Constant) else texts.get(each.id) for each in node.args[:2]
                )
                if module and name and "." not in name:
                    found.append((module, name))
    return [*found, *(("ray.experimental.internal_kv", f"_internal_kv_{verb}") for verb in ("put", "get", "del"))]


def _pairs(node: ast.Assign):
    target, value = node.targets[0], node.value
    both_tuples = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
    return zip(target.elts, value.elts) if both_tuples else [(target, value)]


def test_a_missing_name_is_logged_once_with_what_is_lost(caplog):
    for _ in range(2):
        assert ray_private._private("ray._no_such_module", "name", "trains more slowly") is None
        assert ray_private._private("ray", "no_such_name", "waits longer") is None
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"Ray {ray.__version__} has no ray._no_such_module.name: trains more slowly",
        f"Ray {ray.__version__} has no ray.no_such_name: waits longer",
    ]


def test_work_continues_without_any_private_name(nothing_private, monkeypatch, tmp_path):
    """Slower or with less said, as each docstring has it; only the URL of a job API must then be given."""
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    trainer = ray_private.trainer_without_idle_process()(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    assert "BackendSetupCallback" in _names(trainer)
    assert ray_private.own_node_is_drained() is False
    assert ray_private.own_daemons() == {}
    ray_private.refresh_known_nodes()
    ray_private.remove_placement_groups()
    ray_private.put_key("key")
    assert ray_private.has_key("key") is False and ray_private.get_value("key") is None
    ray_private.delete_key("key")
    with ray_private.apart_from_terminal():
        pass
    assert ray_private.free_resources() == [{"CPU": 3.0}]
    assert ray_private.session_folder() == "/tmp/ray" and ray_private.dashboard_address() == ""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert ray_private.sends_token() is True
    with pytest.raises(InputError, match="http://HOST:8265"):
        ray_private.job_api_of("10.0.0.1:6379")
    _write(tmp_path, "a.py", ".git/b", "x/__pycache__/c.pyc", "skip.log")
    (tmp_path / ".gitignore").write_text("*.log\n")
    travels = {str(path.relative_to(tmp_path)) for path in ray_private.files_that_travel(tmp_path, list(EXCLUDES))}
    assert travels == {"a.py", ".gitignore", "skip.log"}  # more than Ray takes, never less
    monkeypatch.setattr(ray_private, "_private", lambda module, name, without: lambda: None)  # is called otherwise
    assert {path.name for path in ray_private.files_that_travel(tmp_path, list(EXCLUDES))} == travels


def test_ray_train_does_not_take_ctrl_c_for_itself():
    """Its handler would hold the controller's process after the end, too."""
    from ray.train.torch import TorchTrainer

    assert hasattr(TorchTrainer, "_register_sigint_handler"), "else the override is needed no more"
    before = signal.getsignal(signal.SIGINT)
    trainer = ray_private.trainer_without_idle_process()(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    trainer._register_sigint_handler(None)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_controller_out_of_reach_is_ended_so_that_the_next_finds_its_cpus_free(monkeypatch):
    from ray.train import ControllerError, ScalingConfig
    from ray.train.torch import TorchTrainer

    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    trainer = ray_private.trainer_without_idle_process()(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    for error, ended in (
        (ray.exceptions.ActorUnavailableError("a cut connection", None), ["its handle"]),
        (ControllerError(RuntimeError("it says so itself")), []),
    ):
        killed.clear()

        def fit(self, error=error):
            self._register_sigint_handler("its handle")
            raise error

        monkeypatch.setattr(TorchTrainer, "fit", fit)
        with pytest.raises(type(error)):
            trainer.fit()
        assert killed == ended and trainer.controller is None


def test_what_a_local_ray_does_not_start_others_start_afterwards():
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in ray_private.IDLE_DAEMONS}
    with ray_private.without_idle_daemons():
        assert all(getattr(Node, name) is not method for name, method in before.items())
    assert before == {name: getattr(Node, name) for name in before}


# --- variables


def test_defaults_leave_what_the_user_has_set(monkeypatch):
    names = [*ray_private.QUIET, *ray_private.LOCAL, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]
    for name in names:
        monkeypatch.setenv(name, "x")  # so that all is undone at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")
    ray_private.set_defaults(local=False)
    assert os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] == "0" and os.environ["RAY_AIR_NEW_OUTPUT"] == "0"
    assert not set(ray_private.LOCAL) & set(os.environ)
    ray_private.set_defaults(local=True)
    ray_private.shorten_group_start()
    assert all(name in os.environ for name in names)


@pytest.mark.parametrize(
    "name",
    [*ray_private.QUIET, "AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"],
)
def test_ray_still_reads_a_variable_that_is_set(name):
    root = Path(ray.__file__).parent
    folders = (
        root / "train",
        root / "tune",
        root / "_private",
        root / "_common",
        root / "autoscaler",
        root / "dashboard",
    )
    assert any(name in path.read_text() for folder in folders for path in folder.rglob("*.py")), name


def test_ray_s_native_part_still_knows_what_is_set_for_a_local_ray():
    """The effects are the time of a sweep (`benchmarks/sweep_overhead.py`), and tests that pass on a busy machine."""
    native = next(Path(ray.__file__).parent.glob("_raylet*.so")).read_bytes()
    assert all(name.removeprefix("RAY_").encode() in native for name in ray_private.LOCAL if name.startswith("RAY_"))


def test_authentication_is_read_again_when_it_was_changed(monkeypatch):
    """In a process of its own: what is read holds for all of it."""
    code = (
        "import os, ray\n"
        "from ray._raylet import AuthenticationTokenLoader\n"
        "from edm_ray.distributed.ray_private import read_authentication_again, sends_token\n"
        "loader, said = AuthenticationTokenLoader.instance(), []\n"
        "for mode, token in (('token', 'a'), ('token', 'b'), ('disabled', 'b')):\n"
        "    os.environ |= {'RAY_AUTH_MODE': mode, 'RAY_AUTH_TOKEN': token * 64}\n"
        "    read_authentication_again()\n"
        "    said.append(loader.get_raw_token()[:1] if sends_token() else '-')\n"
        "print(*said)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["a", "b", "-"], done.stderr


# --- Ray Train


def _names(trainer) -> list[str]:
    return [type(each).__name__ for each in trainer._create_default_callbacks()]


@pytest.mark.parametrize("datasets", [{}, {"train": "a data set"}])
def test_a_process_for_data_sets_is_started_only_where_there_are_some(datasets):
    """By name, so that a Ray that calls it otherwise fails here and does not start it unseen."""
    trainer = ray_private.trainer_without_idle_process()
    names = _names(trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1), datasets=datasets))
    assert "BackendSetupCallback" in names
    assert ("DatasetsCallback" in names) == bool(datasets)


def test_workers_run_a_function_before_the_process_group_is_made(monkeypatch):
    """With a group of workers that notes what it is told to run; `tests/multinode/test_namespaces.py` has real ones."""
    ran: list[object] = []

    def first(config) -> None:
        """The function."""

    backend = ray_private.backend_that_first_runs(first, lambda config: ran.append("controller"))
    base, config = TorchConfig().backend_cls, TorchConfig()
    monkeypatch.setattr(base, "on_start", lambda self, group, config: ran.append("process group"))
    backend().on_start(SimpleNamespace(execute=lambda *call: ran.extend(call)), config)
    assert ran == ["controller", first, config, "process group"] and issubclass(backend, base)


def test_a_notice_that_a_node_will_go_is_seen_without_a_barrier(monkeypatch):
    """With Ray's own context of a worker; `tests/multinode/test_elastic.py` has a real drain."""
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    worker = SimpleNamespace(preemption_context=PreemptionContext())
    assert "preemption_context" in context.TrainContext.__dataclass_fields__
    monkeypatch.setattr(context, "_train_context", worker)
    assert ray_private.own_node_is_drained() is False
    worker.preemption_context.preemption_info = "node 1 goes at 12:00"
    assert ray_private.own_node_is_drained() is True


def test_a_context_without_notices_is_no_notice(monkeypatch):
    from ray.train.v2._internal.execution import context

    monkeypatch.setattr(context, "_train_context", SimpleNamespace())
    assert ray_private.own_node_is_drained() is False


# --- Ray Tune


def test_tune_gives_trials_no_aws_key_of_this_environment(monkeypatch):
    from ray.tune.execution import class_cache

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {*class_cache.ENV_VARS_TO_PROPAGATE, "AWS_SESSION_TOKEN"})
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary")
    seen = []
    monkeypatch.setattr(class_cache.ray, "remote", lambda **options: seen.append(options) or (lambda cls: cls))
    cache = class_cache._ActorClassCache()
    cache.get(int)
    assert "canary" in str(seen), "Ray does so by itself, else this function is needed no more"
    ray_private.keep_aws_keys_out_of_trials()
    cache.get(str)
    assert "canary" not in str(seen[1:]) and "PL_DISABLE_FORK" in str(seen[1:])


def test_a_key_that_might_be_logged_is_refused(monkeypatch):
    from ray.tune.execution import class_cache

    monkeypatch.delattr(class_cache, "ENV_VARS_TO_PROPAGATE")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    ray_private.keep_aws_keys_out_of_trials()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with pytest.raises(InputError, match=r"may write AWS_SECRET_ACCESS_KEY to its logs.*role") as caught:
        ray_private.keep_aws_keys_out_of_trials()
    assert "canary" not in str(caught.value)


# --- Ray's core, on the one Ray of the tests


class Counter:
    def __init__(self) -> None:
        self.count = 7


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    def test_a_key_is_seen_until_it_is_deleted(self):
        assert ray_private.has_key("test:key") is False
        ray_private.put_key("test:key")
        look = ray.remote(num_cpus=0)(ray_private.has_key)
        assert ray_private.has_key("test:key") and ray.get(look.remote("test:key")), "a worker sees it too"
        assert ray_private.get_value("test:key") == b"1"
        ray_private.put_value("test:key", b"12 100")
        assert ray_private.get_value("test:key") == b"12 100"
        ray_private.delete_key("test:key")
        assert ray_private.has_key("test:key") is False

    def test_the_raylet_and_the_head_of_this_process_are_known(self):
        import psutil

        below = {each.pid: each.name() for each in psutil.Process().children(recursive=True)}
        found = ray_private.own_daemons()
        assert {name: below[pid] for name, pid in found.items()} == {"raylet": "raylet", "gcs_server": "gcs_server"}

    def test_no_process_runs_that_a_local_ray_has_no_use_for(self):
        commands = [command for _, command in processes_below(os.getpid()) if "ray" in command]
        assert any("raylet" in command for command in commands)
        assert not [each for each in commands if re.search(r"/(monitor|dashboard|log_monitor)\.py\0", each)]
        assert ray_private.dashboard_address() == ""

    def test_no_process_of_ray_is_in_the_session_of_the_terminal(self):
        """Nor in the group that Ctrl-C, closing the window and `timeout` reach; and SIGTERM ends each of them."""
        import psutil

        marks = (str(Path(ray.__file__).parent), "ray::")
        processes = psutil.Process().children(recursive=True)
        below = [each for each in processes if any(word.startswith(marks) for word in each.cmdline())]
        assert len(below) >= 3, "the head's server, the raylet and an agent"
        for process in below:
            assert os.getsid(process.pid) != os.getsid(0) and os.getpgid(process.pid) != os.getpgid(0), process
            (blocked,) = re.findall(r"SigBlk:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
            assert not int(blocked, 16) & 1 << (signal.SIGTERM - 1), process

    def test_free_resources_are_those_of_each_node_less_what_is_held(self):
        before = sum(node.get("CPU", 0.0) for node in ray_private.free_resources())
        assert len(ray_private.free_resources()) == 1 and 1 <= before <= 4
        holder = ray.remote(num_cpus=1)(Counter).remote()
        ray.get(ray_private.run_in_actor(holder, lambda counter: counter.count))
        assert sum(node.get("CPU", 0.0) for node in ray_private.free_resources()) <= before - 1
        ray.kill(holder)

    def test_a_function_runs_inside_an_actor(self):
        actor = ray.remote(num_cpus=0)(Counter).remote()
        count, pid = ray.get(ray_private.run_in_actor(actor, lambda counter: (counter.count, os.getpid())))
        assert count == 7 and pid != os.getpid()
        ray.kill(actor)

    def test_the_list_of_nodes_that_groups_are_planned_with_is_read_at_once(self, caplog):
        """That a lost node then costs no start timeout: `tests/multinode/test_elastic.py`."""
        ray_private.refresh_known_nodes()
        assert not caplog.records

    def test_groups_whose_maker_died_give_back_what_they_held(self):
        group = ray.util.placement_group([{"CPU": 1}])
        ray.get(group.ready())
        number = group.id.hex()
        del group
        ray_private.remove_placement_groups()
        assert ray.util.placement_group_table()[number]["state"] == "REMOVED"

    def test_this_ray_says_where_its_session_lies_and_that_it_has_no_job_api(self):
        assert any(Path(ray_private.session_folder()).glob("session_*"))
        assert ray_private.dashboard_address() == ""


# --- Ray's job client


def test_a_token_is_sent_in_token_mode_only():
    code = "from edm_ray.distributed.ray_private import sends_token; print(sends_token())"
    for mode, sent in (("token", "True"), ("disabled", "False")):
        environment = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "0" * 64}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.strip() == sent, done.stderr


def test_the_job_api_of_a_url_is_that_url(monkeypatch):
    """Of HOST:PORT the cluster itself must be asked: `tests/jobs/test_head.py` gives RAY_ADDRESS so."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_private.job_api_of("http://127.0.0.1:8265") == "http://127.0.0.1:8265"


def test_the_job_client_is_silent():
    ray_private.silence_job_client()
    assert not logging.getLogger("ray.dashboard.modules.job.sdk").isEnabledFor(logging.INFO)


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_what_is_counted_is_what_ray_uploads(tmp_path):
    """The size check walks with Ray's private walker: its answer must be the names in Ray's own package."""
    from ray._private.runtime_env.packaging import create_package

    _write(tmp_path / "dir", "a.py", "sub/b.py", "sub/skip.log", "runs/c.bin", ".git/d", "keep/__pycache__/e.pyc")
    (tmp_path / "dir" / ".gitignore").write_text("*.log\n")
    (tmp_path / "dir" / ".rayignore").write_text("runs\n")
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "dir"), package, include_gitignore=True, excludes=list(EXCLUDES))
    packed = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    counted = {name for _, name in upload_sizes(tmp_path / "dir")}
    assert counted == packed == {"a.py", "sub/b.py", ".gitignore", ".rayignore"}
