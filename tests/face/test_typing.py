"""A user's program that uses the whole face passes `mypy --strict`; one with mistakes does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("user_program.py")
pytestmark = pytest.mark.slow  # mypy reads torch: half a minute
MISTAKES = """
import edm_ray as edm

edm.nonsense  # line 4: no such name
edm.Heun(num_steps="18")  # line 5: not a number
edm.Heun(s_churm=40)  # line 6: no such setting
edm.evaluate("model", "reference", 18)  # line 7: not a sampler
wrong: str = edm.fid("a", "b")  # line 8: not a text
edm.train("data", "digits", "run", on="ray")  # line 9: not an executor
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File -> what mypy says of it, both in one run, as of a package that is installed."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(PROGRAM, folder / "program.py")
    (folder / "mistakes.py").write_text(MISTAKES)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, "--cache-dir", str(folder / "cache"), "program.py", "mistakes.py"],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    lines = done.stdout.splitlines()
    return {name: "\n".join(line for line in lines if line.startswith(name)) for name in ("program", "mistakes")}


def test_a_user_s_program_passes_mypy_strict(checked: dict[str, str]) -> None:
    assert checked["program"] == ""


@pytest.mark.parametrize("line", range(4, 10))
def test_mistakes_in_a_user_s_program_are_found(checked: dict[str, str], line: int) -> None:
    """So that the program above does not pass because everything is Any."""
    assert f"mistakes.py:{line}: error" in checked["mistakes"]
