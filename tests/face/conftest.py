"""A network of a user's own, trained for a moment on digits, and a reference to measure it against."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edm_ray as edm
from edm_ray.tasks.given import OpenedReference
from tests.face.user_program import ConvNet

TINY = ["total_kimg=0.096", "tick_kimg=0.048", "checkpoint_kimg=0.048"]


@pytest.fixture(scope="session")
def reference(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> OpenedReference:
    out = tmp_path_factory.mktemp("reference") / "digits"
    return edm.reference(str(digits_dir / "train"), str(out), extractor="digits")


def convnet(seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet()


@pytest.fixture(scope="session")
def own_run(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, edm.ModelDenoiser]:
    """(place of the run, what training gave)."""
    out = str(tmp_path_factory.mktemp("own") / "run")
    return out, edm.train(str(digits_dir / "train"), "tiny", out, network=convnet(), overrides=TINY)
