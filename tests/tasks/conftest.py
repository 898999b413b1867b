from __future__ import annotations

from pathlib import Path

import pytest

import edm_ray as edm


@pytest.fixture(scope="session")
def model(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the digits, hardly trained; read only."""
    out = str(tmp_path_factory.mktemp("model") / "run")
    edm.train(str(digits_dir / "train"), "tiny", out, overrides=["total_kimg=0.048", "tick_kimg=0.048"])
    return f"{out}/model"
