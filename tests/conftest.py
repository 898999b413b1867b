"""Shared fixtures: one Ray for the whole session, a private HOME, the digits as a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["EDM_RAY_STORAGE_PATIENCE_S"] = "0"  # storage that fails is given up after a few tries
for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing may depend on, or write into, the real home folder."""
    path = tmp_path_factory.mktemp("home")
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(path)
    yield path
    if before is not None:
        os.environ["HOME"] = before


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray of the test session: 4 logical CPUs, whatever the machine has."""
    import ray

    from edm_ray.distributed.session import session

    os.environ["EDM_RAY_LOCAL_CPUS"] = "4"
    with session():
        yield
    del os.environ["EDM_RAY_LOCAL_CPUS"]
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``heldout`` data sets of the handwritten digits."""
    from edm_ray.cli import main

    path = tmp_path_factory.mktemp("digits")
    assert main(["prepare", "digits", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def digits_reference(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the digits to train on, with the digits extractor; read only."""
    from edm_ray.cli import main

    out = str(tmp_path_factory.mktemp("digits-reference") / "digits")
    assert main(["reference", "--data", str(digits_dir / "train"), "--out", out, "--extractor", "digits"]) == 0
    return out
