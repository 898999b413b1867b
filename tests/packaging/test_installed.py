"""The wheel in an environment of its own, used in an empty folder: no clone is anywhere near."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from edm_ray.version import __version__
from tests.packaging.conftest import ROOT

FEW = [
    *("--workers", "0", "--chunk-size", "50", "--initial-chunks", "1", "--max-chunks", "1", "--num-line", "1"),
    *("--num-global", "0", "--num-model", "0", "--confirm-chunks", "1", "--grid", "10"),
]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the wheel, and the dependencies that are here already (not the editable install of this checkout)."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder / "bin"


@pytest.fixture
def run(environment: Path, tmp_path: Path):
    """A command in an empty folder; its output. It must succeed."""

    def call(*words: str, code: int = 0) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        clean |= {"OMP_NUM_THREADS": "1", "PATH": f"{environment}:{clean['PATH']}"}
        command = [environment / words[0], *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


@pytest.mark.slow
def test_the_first_steps_of_the_demo_and_a_sweep_run_from_the_wheel(run, tmp_path):
    where = run("python", "-c", "import edm_ray; print(edm_ray.__file__)")
    assert str(ROOT) not in where and "site-packages" in where
    assert run("edm-ray", "--version") == run("python", "-m", "edm_ray", "--version") == f"edm-ray {__version__}\n"
    assert "digits" in run("edm-ray", "presets")
    run("edm-ray", "prepare", "digits", "data")
    few = ("total_kimg=0.128", "batch_size=64")
    run("edm-ray", "train", "--data", "data/train", "--out", "run", "--preset", "tiny", "--workers", "0", "--set", *few)
    run("edm-ray", "reference", "--data", "data/train", "--out", "reference", "--extractor", "digits")
    asked = ["edm-ray", "sweep", "--model", "run/model", "--reference", "reference", "--out", "sweep"]
    assert "give a file, or one of these names: " in run(*asked, "--space", "tune_spaces/digits.yaml", code=2)
    run(*asked, "--space", "digits", *FEW)
    assert (tmp_path / "sweep" / "report.html").is_file() and (tmp_path / "sweep" / "best-sampler.yaml").is_file()
    run(*asked[:-1], "by-budget", "--nfe", "5", "--dry-run")
