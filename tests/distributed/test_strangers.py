"""A local Ray and someone who reaches this machine's ports but has no token, or another: no door lets them in."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import ray

from edm_ray.distributed.ray_private import session_folder

psutil = importlib.import_module("psutil")  # Ray brings one of its own
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
STRANGERS = {
    "no token": {"RAY_AUTH_MODE": "disabled"},
    "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
}
SECONDS_MORE = 5.0
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.JobInfoGcsService/AddJob",
    "/ray.rpc.ActorInfoGcsService/CreateActor",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/Exit",
    "/ray.rpc.ReporterService/GetTraceback",
)
"""One at least of each kind of process, and those that would do harm."""


PATHS = ("/", "/get_or_create_runtime_env", "/api/job_agent/jobs/", "/metrics")


def _own_token() -> str:
    """From the environment of one of Ray's processes, where only this user can read it."""
    return next(
        entry.partition("=")[2]
        for child in psutil.Process().children(recursive=True)
        if child.name().startswith("gcs_server")
        for entry in Path(f"/proc/{child.pid}/environ").read_text().split("\0")
        if entry.startswith("RAY_AUTH_TOKEN=")
    )


def _environment(own: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **own}


def test_a_stranger_runs_no_task_and_their_machine_does_not_join(tmp_path):
    """Beside them a program that has the token, which shows that it is the token that keeps the others out."""
    address = ray.get_runtime_context().gcs_address
    code = (
        "import logging, pathlib, sys, ray\n"
        f"ray.init({address!r}, logging_level=logging.CRITICAL)\n"
        "touch = lambda path: pathlib.Path(path).touch()\n"
        "ray.get(ray.remote(num_cpus=0)(touch).remote(sys.argv[1]), timeout=60)\n"
    )
    everyone = {**STRANGERS, "the token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _own_token()}}
    join = [str(Path(sys.executable).with_name("ray")), "start", f"--address={address}", "--block", "--num-cpus=1"]
    commands = [(who, [sys.executable, "-c", code, str(tmp_path / who)]) for who in everyone]
    commands += [(who, join) for who in STRANGERS]
    with ExitStack() as ends:
        for who, command in commands:
            log = ends.enter_context((tmp_path.parent / "log").open("wb"))
            process = subprocess.Popen(command, env=_environment(everyone[who]), stdout=log, stderr=log, cwd=tmp_path)
            ends.callback(_end, process)
        deadline = time.monotonic() + 60
        while not (tmp_path / "the token").exists():
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(SECONDS_MORE)
        assert len(ray.nodes()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["the token"]


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        for each in psutil.Process(process.pid).children(recursive=True):
            each.kill()
        process.kill()
    process.wait(30)


def _doors() -> Iterator[tuple[str, str, int]]:
    """(process, address, port) of all that listens for this Ray, here and in its processes."""
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN:
                yield process.name(), each.laddr.ip, each.laddr.port


def _rpc(host: str, port: int, method: str, token: str | None) -> grpc.StatusCode:
    """What a call of ours is answered with."""
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        metadata = [("authorization", f"Bearer {token}")] if token else []
        try:
            channel.unary_unary(method)(b"", timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def _http(host: str, port: int, path: str, token: str | None) -> int:
    request = urllib.request.Request(f"http://{host}:{port}{path}", data=b"x")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_every_open_port_asks_for_the_token():
    ray.get(ray.remote(num_cpus=0)(lambda: None).remote())  # so that a worker listens too
    doors = sorted(set(_doors()))
    assert len(doors) >= 4, doors
    for name, ip, port in doors:
        host = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(ip, ip)
        for token in (None, "0" * 64):
            answers = {method: _rpc(host, port, method, token) for method in METHODS}
            if set(answers.values()) == {grpc.StatusCode.UNAVAILABLE}:
                assert {_http(host, port, path, token) for path in PATHS} <= {401, 403}, (name, ip, port)
            else:  # a method of another kind of process is not known
                refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
                assert set(answers.values()) <= refused, (name, ip, port, answers)


def test_workers_of_a_training_talk_over_loopback():
    assert ray.get(ray.remote(num_cpus=0)(lambda: os.environ.get("GLOO_SOCKET_IFNAME")).remote()) == "lo"


def test_its_files_are_its_owner_s():
    folder = Path(session_folder())
    assert folder.parent.stat().st_mode & 0o077 == 0


def test_the_token_is_in_no_file_and_in_no_other_program_s_environment():
    token = _own_token()
    assert len(token) == 64 and "RAY_AUTH_TOKEN" not in os.environ
    files = [path for path in Path(session_folder()).rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if token.encode() in path.read_bytes()]
    for child in psutil.Process().children(recursive=True):
        assert token not in " ".join(child.cmdline())
