from __future__ import annotations

import pytest

from edm_ray.cli import main


@pytest.fixture(scope="session")
def tiny_model(digits_dir, tmp_path_factory) -> str:
    """A conditional model of the digits, hardly trained."""
    run = str(tmp_path_factory.mktemp("tiny") / "run")
    assert main(["train", "--data", str(digits_dir / "train"), "--out", run, "--preset", "tiny", "--no-ray"]) == 0
    return f"{run}/model"
