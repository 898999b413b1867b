"""The commands of docs/tutorial.md run, in their order, and say what the page shows."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _module():
    spec = importlib.util.spec_from_file_location("run_tutorial", ROOT / "docs" / "run_tutorial.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_tutorial"] = module
    spec.loader.exec_module(module)
    return module


def _words(line: str) -> str:
    """Without numbers: times, and the last bits of floats, are of the machine."""
    return re.sub(r"[\d][\d.,]*|inf|nan", "N", " ".join(line.split()))


def test_every_command_of_the_page_shows_real_output():
    steps = list(_module().steps((ROOT / "docs" / "tutorial.md").read_text()))
    assert sum(step.language == "sh" for step in steps) >= 8
    shown = [step.shown for step in steps if step.shown is not None]
    assert len(shown) >= 6 and all(shown)


@pytest.mark.slow
def test_the_tutorial_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module = _module()
    for step in module.steps(module.PAGE.read_text()):
        said = module.run(step, tmp_path)
        if step.shown is not None:
            last = {_words(line) for line in said.splitlines()}
            missing = [line for line in step.shown.splitlines() if not _found(_words(line), last)]
            assert not missing, (step.code, missing, said)
    for name in ("photos.png", "samples.png", "best.png", "sampler.json", "sweeps/photos/report.html"):
        assert (tmp_path / name).stat().st_size > 100


def _found(line: str, said: set[str]) -> bool:
    """Rows of tables name samplers that the last bits may decide: their first words are compared."""
    return line in said or any(each.split()[:2] == line.split()[:2] for each in said)
