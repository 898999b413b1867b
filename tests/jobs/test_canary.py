"""A secret in the environment never reaches a log, a configuration, a report or a run's directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edm_ray.errors import InputError
from edm_ray.storage import uris
from tests.jobs.heads import CANARY, EDM_RAY, environment, leaks

TINY = [
    *("--space", "tune_spaces/digits.yaml", "--chunk-size", "50", "--initial-chunks", "1", "--max-chunks", "1"),
    *("--num-line", "1", "--num-global", "0", "--num-model", "0", "--confirm-chunks", "1", "--grid", "10"),
]


def test_the_search_finds_a_planted_canary(tmp_path):
    (tmp_path / "log").write_text(f"x {CANARY}-secret y")
    assert leaks(tmp_path) == [str(tmp_path / "log")]


@pytest.mark.slow
def test_a_run_without_ray_leaks_nothing(digits_dir, tmp_path):
    variables = environment_of(tmp_path)
    command = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "run"), "--preset", "tiny"]
    done = subprocess.run([EDM_RAY, *command, "--no-ray"], env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr and leaks(tmp_path) == []
    failing = subprocess.run(
        [EDM_RAY, *command, "--set", "denoiser.network.dropuot=1"], env=variables, capture_output=True, text=True
    )
    assert failing.returncode == 2 and CANARY not in failing.stdout + failing.stderr


def environment_of(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    return environment(home, "disabled")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_and_a_sweep_leak_nothing(digits_dir, tmp_path):
    """All that the commands write: the run, the reference, the sweep with its report, and Ray's session and logs."""
    temp = Path("/tmp") / f"edm-{os.getpid()}-canary"
    variables = {**environment_of(tmp_path), "RAY_TMPDIR": str(temp), "EDM_RAY_LOCAL_CPUS": "4"}
    temp.mkdir()
    data, run, reference = str(digits_dir / "train"), tmp_path / "run", tmp_path / "reference"
    commands = [
        ["train", "--data", data, "--out", str(run), "--preset", "tiny"],
        ["reference", "--data", data, "--out", str(reference), "--extractor", "digits"],
        ["sweep", "--model", f"{run}/model", "--reference", str(reference), "--out", str(tmp_path / "sweep"), *TINY],
    ]
    script = tmp_path / "all.py"
    script.write_text(
        "from edm_ray.cli import main\n"
        "import shutil\n"
        "from edm_ray.distributed.ray_private import session_folder\n"
        "from edm_ray.distributed.session import session\n"
        "with session():\n"
        f"    for command in {commands!r}:\n"
        "        assert main(command) == 0, command\n"
        # The folder goes with the session; sockets cannot be copied.
        f"    logs = {str(temp / 'logs')!r}\n"
        "    shutil.copytree(session_folder(), logs, symlinks=True, ignore=lambda *_: ['sockets'])\n"
    )
    try:
        done = subprocess.run([sys.executable, str(script)], env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert CANARY not in done.stdout + done.stderr
        assert (tmp_path / "sweep" / "report.html").is_file() and (run / "config.yaml").is_file()
        logs = [path for path in temp.rglob("*.log") if path.is_file()]
        assert logs, "Ray's logs are below the folder that is searched"
        assert leaks(tmp_path) == [] and leaks(temp) == []
    finally:
        import shutil

        shutil.rmtree(temp, ignore_errors=True)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    for uri in (f"s3://{CANARY}:{CANARY}@bucket/x", f"s3://AKIA:{CANARY}@bucket"):
        with pytest.raises(InputError) as caught:
            uris.resolve(uri)
        assert CANARY not in str(caught.value)
