"""SIGKILL at every kind of moment, and other mishaps: the same command afterwards ends as if nothing had been.

Each run is a process of its own, killed by itself at a named point. `test_worker_faults.py`: the same with two workers.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edm_ray.storage import uris
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store
from tests.storage.proxies import s3_server
from tests.training.faults import FORKS, POINTS, result_of, run_tiny, train_tiny


@pytest.fixture(scope="module")
def data(digits_dir) -> str:
    return str(digits_dir / "heldout")


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("calm") / "run")
    assert run_tiny(data, uri) == 0
    return result_of(uri)


@pytest.mark.parametrize("point", list(POINTS))
def test_a_run_killed_at_any_moment_ends_with_the_bits_of_a_calm_one(data, calm, tmp_path, point):
    uri = str(tmp_path / "run")
    assert run_tiny(data, uri, point) == -signal.SIGKILL
    assert run_tiny(data, uri) == 0
    assert result_of(uri) == calm


@pytest.mark.fault
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_again_and_again_ends_with_the_bits_of_a_calm_one(data, calm, tmp_path, seed):
    """From outside, at random moments, until one process comes to its end."""
    uri, chance, kills = str(tmp_path / "run"), random.Random(seed), 0
    while True:
        process = FORKS.Process(target=train_tiny, args=(data, uri, None))
        process.start()
        # Early at first: a quick machine is through with the whole run in a second, and nothing would be killed.
        process.join(chance.uniform(0.02, min(0.2 * (kills + 1), 1.2)) if kills < 12 else 120)
        if process.exitcode == 0:
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= 1 and result_of(uri) == calm


def test_a_killed_upload_leaves_no_checkpoint_and_the_next_command_resumes(data, calm, tmp_path):
    """To S3 over HTTP: the process dies within a checkpoint's upload."""
    with s3_server("runs"):
        context = multiprocessing.get_context("spawn")  # the fork server was started without these variables
        for kill in (True, False):
            point = "while the first checkpoint is written" if kill else None
            process = context.Process(target=train_tiny, args=(data, "s3://runs/one", point))
            process.start()
            process.join(120)
            assert process.exitcode == (-signal.SIGKILL if kill else 0)
            if kill:
                assert (
                    uris.list_names("s3://runs/one/checkpoints") and not checkpoint_store("s3://runs/one").committed()
                )
        assert result_of("s3://runs/one") == calm


def test_leftovers_of_a_dead_attempt_with_the_same_name_are_written_over(data, calm, tmp_path):
    uri = str(tmp_path / "run")
    assert run_tiny(data, uri, "in the middle of an epoch") == -signal.SIGKILL
    half = Path(uri) / "checkpoints" / "nimg-000000000384"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of another attempt")
    (half / "more.safetensors").write_bytes(b"what this attempt has not")
    (Path(uri) / "model").mkdir()
    (Path(uri) / "model" / "model.safetensors").write_bytes(b"\0" * 100)
    assert run_tiny(data, uri) == 0
    assert result_of(uri) == calm


def test_a_clock_that_jumps_changes_nothing(data, calm, tmp_path, monkeypatch):
    """The system's clock is set forward and back by hours, in steps and between them."""
    real, jumps = time.time, itertools.cycle((0.0, 7200.0, -86400.0, 31e6))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    uri = str(tmp_path / "run")
    train_tiny(data, uri, None)
    assert result_of(uri) == calm


def full_disk_at(name: str, monkeypatch) -> list[str]:
    """Writes to paths with this name fail half-way, as on a full disk, until the list is cleared."""
    original, full = uris.write_bytes, [name]

    def write(path: str, content: bytes) -> None:
        if any(each in path for each in full):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).with_suffix(".half").write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        original(path, content)

    monkeypatch.setattr(uris, "write_bytes", write)
    return full


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole_and_with_room_it_resumes(
    data, calm, tmp_path, monkeypatch
):
    """Every write below checkpoints/ fails from the second checkpoint on, as a full disk does, also half-way."""
    from edm_ray.training import checkpoints

    monkeypatch.setattr(checkpoints, "FIRST_WAIT_S", 0.01)
    uri, full = str(tmp_path / "run"), full_disk_at("nimg-000000000192", monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        train_tiny(data, uri, None)
    assert checkpoint_store(uri).committed() == [96] and checkpoint_store(uri).latest() is not None
    full.clear()
    train_tiny(data, uri, None)
    assert result_of(uri) == calm


def test_a_full_disk_at_the_end_keeps_the_run_and_with_room_the_model_is_written(data, calm, tmp_path, monkeypatch):
    """The last checkpoint is there; what fails is the model, half-way."""
    uri, full = str(tmp_path / "run"), full_disk_at("/model/", monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        train_tiny(data, uri, None)
    assert not uris.exists(str(tmp_path / "run" / "model" / "manifest.json"))
    full.clear()
    train_tiny(data, uri, None)
    assert result_of(uri) == calm


@pytest.mark.fault
def test_sigterm_makes_a_checkpoint_and_the_same_command_resumes(data, tmp_path):
    """A machine's notice, to the command as a person runs it."""
    command = [str(Path(sys.executable).with_name("edm-ray")), "train", "--data", data, "--preset", "tiny", "--no-ray"]
    command += ["--set", "total_kimg=12", "tick_kimg=1.2", "checkpoint_kimg=1000", "--out"]
    told = subprocess.Popen([*command, str(tmp_path / "told")], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not read_metrics(str(tmp_path / "told")):
        assert told.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    told.send_signal(signal.SIGTERM)
    output, _ = told.communicate(timeout=60)
    assert told.returncode == 143 and "the same command resumes from there" in output
    saved = checkpoint_store(str(tmp_path / "told")).committed()
    assert len(saved) == 1 and 0 < saved[0] < 12_000
    for name in ("told", "calm"):
        subprocess.run([*command, str(tmp_path / name)], check=True, timeout=300, stdout=subprocess.DEVNULL)
    told_result, calm_result = result_of(str(tmp_path / "told")), result_of(str(tmp_path / "calm"))
    assert told_result.pop("checkpoints") != calm_result.pop("checkpoints")
    assert told_result == calm_result
