"""The short scripts of examples/ run as they stand, at toy size, and print what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edm_ray as edm

ROOT = Path(__file__).parents[2]
FID = r"FID \d+\.\d+ \+- \d+\.\d+ \(n={}\), debiased -?\d+\.\d+"


def example(name: str, *arguments: str, cwd: Path) -> list[str]:
    """Lines that it prints."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def made(digits_dir: Path, digits_reference: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(model, reference) of the digits, as `edm-ray demo` makes them, smaller."""
    out = tmp_path_factory.mktemp("made")
    data = str(digits_dir / "train")
    edm.train(data, "tiny", str(out / "run"), overrides=["total_kimg=0.048", "tick_kimg=0.048"])
    return str(out / "run" / "model"), digits_reference


@pytest.mark.slow
def test_a_few_lines_sample_and_measure(made: tuple[str, str], tmp_path: Path) -> None:
    first, *fids = example("few_lines.py", *made, "100", cwd=tmp_path)
    assert first == "100 images of (1, 8, 8), 35 network evaluations each"
    assert [re.fullmatch(rf"S_churn = (\d): {FID.format(100)},.*", line).group(1) for line in fids] == ["0", "5"]


@pytest.mark.slow
def test_a_network_of_one_s_own_is_trained_sampled_and_measured_and_resumes(tmp_path: Path) -> None:
    lines = example("own_network.py", "0.256", "100", cwd=tmp_path)
    assert re.fullmatch(r"pixels from \d+ to \d+", lines[0]) and re.match(FID.format(100), lines[1])
    assert (tmp_path / "own-network" / "run" / "model" / "model.safetensors").exists()
    assert example("own_network.py", "0.256", "100", cwd=tmp_path) == lines  # finds it all there


def test_a_sampler_of_one_s_own_is_measured_beside_euler(made: tuple[str, str], tmp_path: Path) -> None:
    lines = example("own_sampler.py", *made, "100", cwd=tmp_path)
    samplers = ["euler num_steps=50", "generalized_ddim num_steps=50 eta=0.5", "generalized_ddim num_steps=50"]
    assert len(lines) == 3
    for line, sampler in zip(lines, samplers, strict=True):
        assert re.match(rf"{sampler} {FID.format(100)}", line), line


def test_the_readme_lists_every_script() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    assert set(re.findall(r"`(\w+\.py)`", text)) == {path.name for path in (ROOT / "examples").glob("*.py")}
