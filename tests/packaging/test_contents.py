"""What is packed: all that the commands need into the wheel, all that the repository holds into the sdist."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from edm_ray.version import __version__
from tests.packaging.conftest import ROOT

KINDS = {".py", ".yaml", ".json", ".j2", ".css", ".typed"}
FOLDERS = ("edm_ray", "tune_spaces", "tests", "docs", "jobs", "cluster", "examples", "research", "benchmarks")


def files(folder: str) -> set[str]:
    """Of the checkout, as paths from its root."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def in_wheel(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_file_of_the_package_and_the_tune_spaces(in_wheel):
    assert {Path(name).suffix for name in files("edm_ray")} <= KINDS, "a new kind: package-data, pyproject.toml"
    expected = files("edm_ray") | {f"edm_ray/{name}" for name in files("tune_spaces")}
    assert "edm_ray/tune_spaces/cifar10.yaml" in expected and "edm_ray/py.typed" in expected
    assert expected == {name for name in in_wheel if name.startswith("edm_ray/")}


def test_the_wheel_holds_nothing_but_the_package(in_wheel):
    assert {name.split("/")[0] for name in in_wheel} == {"edm_ray", f"edm_ray-{__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in in_wheel)


def test_the_version_is_said_in_one_place_and_the_citation_agrees(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"edm_ray-{__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"edm_ray-{__version__}.dist-info/entry_points.txt").decode()
    assert f"\nVersion: {__version__}\n" in metadata and "edm-ray = edm_ray.cli:main" in scripts
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    said = [name for name in files("edm_ray") if re.search(rf'"{re.escape(__version__)}"', (ROOT / name).read_text())]
    assert said == ["edm_ray/version.py"]


def test_the_sdist_holds_what_the_repository_holds(built):
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.split("/", 1)[-1] for name in archive.getnames()}
    for folder in FOLDERS:
        # A link is packed as what it leads to.
        assert not files(folder) - packed, folder
    top = ("pyproject.toml", "setup.py", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "CITATION.cff")
    assert set(top) | {"constraints.txt", "constraints-lowest.txt"} <= packed


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "edm_ray", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"edm-ray {__version__}\n")
