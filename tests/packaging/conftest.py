"""The wheel and the sdist of this checkout, built once, outside of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "demo", "runs")
BUILD = "import sys, setuptools.build_meta as it; out = sys.argv[1]; it.build_sdist(out); it.build_wheel(out)"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both. Building writes beside the source, so that is copied first."""
    source, dist = tmp_path_factory.mktemp("source") / "edm_ray", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    subprocess.run([sys.executable, "-c", BUILD, str(dist)], cwd=source, check=True, capture_output=True)
    return dist


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path
