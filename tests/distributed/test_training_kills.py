"""Training on Ray as a person runs it, on a Ray of its own, with SIGKILL of the driver and of workers. Opt-in."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edm_ray.models import open_model
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store, model_uri

pytestmark = pytest.mark.ray
CLOCKS = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}


def _command(data: Path, out: Path, kimg: float, *more: str) -> list[str]:
    train = [str(Path(sys.executable).with_name("edm-ray")), "train", "--data", str(data / "train"), "--out", str(out)]
    settings = [f"total_kimg={kimg}", "tick_kimg=1.2", "checkpoint_kimg=1.2", "denoiser.network.dropout=0.1"]
    return [*train, "--preset", "tiny", "--workers", "2", *more, "--set", *settings]


def _start(command: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "EDM_RAY_LOCAL_CPUS": "2", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def _workers_of(driver: int) -> list[int]:
    return _processes_below(driver, b"RayTrainWorker")


def _processes_below(driver: int, kind: bytes) -> list[int]:
    """Ray's processes of this title in the tree below a driver."""
    parents, found = {}, []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                status = (process / "stat").read_text().rsplit(")", 1)[1].split()
                title = (process / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(process.name)] = int(status[1])
            if title.startswith(b"ray::") and kind in title:
                found.append(int(process.name))

    def below(pid: int) -> bool:
        while pid > 1:
            if pid == driver:
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in found if below(pid)]


def _result(run: Path | str) -> tuple[bytes, list[dict]]:
    rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_metrics(str(run))]
    return open_model(model_uri(str(run))).weights, rows


def _wait_for_checkpoint(run: Path, driver: subprocess.Popen, log: Path) -> None:
    _wait(lambda: checkpoint_store(str(run)).committed(), driver, log)


def _wait(until: Callable[[], Any], driver: subprocess.Popen, log: Path) -> None:
    """Minutes on a machine that others use too."""
    deadline = time.monotonic() + 400
    while not until():
        if driver.poll() is not None or time.monotonic() > deadline:
            driver.kill()
            raise AssertionError(log.read_text()[-5000:])
        time.sleep(0.02)


@pytest.mark.fault
def test_a_killed_driver_and_the_same_command_give_the_bits_of_a_calm_run(digits_dir, tmp_path):
    log = tmp_path / "log"
    driver = _start(_command(digits_dir, tmp_path / "struck", 14.4), log)
    _wait_for_checkpoint(tmp_path / "struck", driver, log)
    driver.kill()
    driver.wait()
    assert not (tmp_path / "struck" / "model" / "manifest.json").exists(), "killed in mid-run, not after it"
    for name in ("struck", "calm"):
        again = _start(_command(digits_dir, tmp_path / name, 14.4), log)
        assert again.wait(300) == 0, log.read_text()
    assert "resuming at" in log.read_text()
    assert _result(tmp_path / "struck") == _result(tmp_path / "calm")


def _controller_of(driver: int) -> int:
    (controller,) = _processes_below(driver, b"TrainController")
    return controller


@pytest.mark.fault
def test_sigterm_to_the_command_makes_a_checkpoint_and_the_same_command_resumes_bit_for_bit(digits_dir, tmp_path):
    """Ticks and checkpoints are rare: what is saved is saved because of the signal, within a tick."""
    log, rare = tmp_path / "log", ["--set", "total_kimg=9.6", "tick_kimg=1.2", "checkpoint_kimg=1000"]
    told = _start([*_command(digits_dir, tmp_path / "told", 9.6), *rare], log)
    _wait(lambda: read_metrics(str(tmp_path / "told")), told, log)
    told.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert told.wait(120) == 143, log.read_text()
    sys.stdout.write(f"SIGTERM -> end of the command: {time.monotonic() - began:.1f} s\n")
    assert "the same command resumes from there" in log.read_text()
    (saved,) = checkpoint_store(str(tmp_path / "told")).committed()
    assert 1200 < saved < 9_600
    for name in ("told", "calm"):
        again = _start([*_command(digits_dir, tmp_path / name, 9.6), *rare], log)
        assert again.wait(300) == 0, log.read_text()
    assert f"resuming at {saved:,} images" in log.read_text()
    assert _result(tmp_path / "told") == _result(tmp_path / "calm")


@pytest.mark.fault
def test_a_killed_controller_of_ray_train_is_outlived_by_the_command(digits_dir, tmp_path):
    """The soak saw ControllerError: the driver starts Ray Train again, from the newest checkpoint."""
    log = tmp_path / "log"
    driver = _start(_command(digits_dir, tmp_path / "struck", 14.4), log)
    _wait_for_checkpoint(tmp_path / "struck", driver, log)
    os.kill(_controller_of(driver.pid), signal.SIGKILL)
    assert driver.wait(300) == 0, log.read_text()
    assert "starting it again" in log.read_text()
    assert _start(_command(digits_dir, tmp_path / "calm", 14.4), log).wait(300) == 0
    assert _result(tmp_path / "struck") == _result(tmp_path / "calm")


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_half_an_hour_of_random_kills_gives_the_parameters_of_a_calm_run(digits_dir, tmp_path):
    """A worker or the driver is killed every 20 to 60 s for SOAK_MINUTES (30); then the command may come to its end.

    The run has more images than two cores train in that time, so kills go on to the end of it.
    """
    minutes, chance = float(os.environ.get("SOAK_MINUTES", "30")), random.Random(0)
    kimg, log, kills, run = 75 * minutes, tmp_path / "log", {"worker": 0, "driver": 0}, tmp_path / "struck"
    command = _command(digits_dir, run, kimg, "--max-failures", "1000")
    driver, end = _start(command, log), time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < end and driver.poll() is None:
            time.sleep(chance.uniform(20, 60))
            victims = _workers_of(driver.pid)
            if victims and chance.random() < 0.75:
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills["worker"] += 1
            elif driver.poll() is None:
                driver.kill()
                driver.wait()
                kills["driver"] += 1
                driver = _start(command, log)
        early = driver.poll() is not None
        assert driver.wait(3600) == 0, log.read_text()[-5000:]
    finally:
        driver.kill()
    sys.stdout.write(f"soak: {kills}, {kimg:g} kimg{', ended before the time' if early else ''}\n")
    assert kills["worker"] >= 1 and kills["driver"] >= 1
    calm = _start(_command(digits_dir, tmp_path / "calm", kimg), log)
    assert calm.wait(3600) == 0, log.read_text()[-5000:]
    assert _result(run) == _result(tmp_path / "calm")
