"""Two commands on one folder, all pairs: the first works, the second is refused within ten seconds and told who the
first is; and nothing of the first is touched."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edm_ray.cli import main
from tests.tasks.commands import COMMANDS, Ingredients, ingredients

HOLDERS = """
import os, sys, threading, time
from edm_ray.storage import lease
from edm_ray.cli import main

class Waiting(lease._Keeper):
    '''Takes the lease as the command does, says so, and waits there.'''
    def __init__(self, *args):
        super().__init__(*args)
        os.write(1, f"held {{self.lease.uri}}\\n".encode())  # in one piece, beside what the others say
        time.sleep(600)

lease._Keeper = Waiting
for command in {commands!r}:
    threading.Thread(target=main, args=(command,), daemon=True).start()
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def given(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingredients:
    return ingredients(tmp_path_factory.mktemp("given"), digits_dir)


@pytest.fixture(scope="module")
def held(given: Ingredients, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[str, Path]]]:
    """(process, command -> the folder it has begun to write): a living process that runs all of them."""
    base = tmp_path_factory.mktemp("held")
    folders = {name: base / name.replace(" ", "") for name in COMMANDS}
    commands = [COMMANDS[name](given, str(folder)) for name, folder in folders.items()]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDERS.format(commands=commands)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        waiting = {str(folder) for folder in folders.values()}
        while waiting:
            line = process.stdout.readline()
            assert line, "ended"
            waiting.discard(line.rpartition("held ")[2].strip())
        yield process.pid, folders
        process.kill()


@pytest.mark.parametrize("second", list(COMMANDS))
def test_the_second_writer_of_a_folder_is_refused_and_told_who_the_first_is(held, given, capsys, second):
    pid, folders = held
    for first, folder in folders.items():
        there = [folder / "checkpoints" / "nimg-000000000024" / "manifest.json", folder / "chunks" / "x"]
        for path in there:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("first's")
        began = time.monotonic()
        assert main(COMMANDS[second](given, str(folder))) != 0, (first, second)
        seconds, said = time.monotonic() - began, capsys.readouterr().err
        assert seconds < 10, (first, second)
        assert f"{folder}: `edm-ray {first.split()[0]}` on " in said and f"pid {pid}, since 2" in said, (first, said)
        assert "is writing here" in said and "Traceback" not in said
        assert all(path.read_text() == "first's" for path in there)


def test_evaluations_of_a_run_s_snapshots_go_on_beside_its_training(held, given):
    """They write chunks of their own, and nothing of the run's."""
    from edm_ray.storage.lease import hold

    _, folders = held
    with hold(str(folders["train"] / "chunks"), "evaluate --follow"):
        """Not refused."""
