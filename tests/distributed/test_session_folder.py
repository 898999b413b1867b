"""The folder of a local Ray's session: nobody else enters it, and it goes, whatever ended the command."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edm_ray.distributed import session_folder
from edm_ray.distributed.session_folder import private_folder, remove_abandoned


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Where session folders are made."""
    monkeypatch.setattr(session_folder, "_base", lambda: tmp_path)
    return tmp_path


def test_only_its_owner_enters_it_and_it_is_gone_at_the_end(base):
    with private_folder() as folder:
        Path(folder).mkdir(mode=0o777)
        assert stat.S_IMODE(Path(folder).parent.stat().st_mode) == 0o700
        (Path(folder) / "log").write_text("x")
    assert not list(base.iterdir())


def test_a_living_command_s_folder_stays(base):
    with private_folder() as folder:
        Path(folder).mkdir()
        remove_abandoned(base)
        assert Path(folder).exists()
        with private_folder() as second:
            assert second != folder
        assert Path(folder).exists()


def test_the_folder_of_a_killed_command_is_removed_by_the_next(base):
    code = (
        "import sys, time, pathlib\n"
        "from edm_ray.distributed import session_folder\n"
        f"session_folder._base = lambda: pathlib.Path({str(base)!r})\n"
        "with session_folder.private_folder() as folder:\n"
        "    pathlib.Path(folder).mkdir(); (pathlib.Path(folder) / 'log').write_text('x')\n"
        "    print('made', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout.readline() == "made\n"
        remove_abandoned(base)
        assert len(list(base.iterdir())) == 1, "it lives"
        victim.kill()
        victim.wait(30)
    with private_folder():
        assert len(list(base.iterdir())) == 1
    assert not list(base.iterdir())


def test_what_is_not_a_session_folder_of_one_s_own_stays(base):
    (base / "edm-ray-notes").mkdir()
    (base / "edm-ray-notes" / "mine.txt").write_text("x")
    (base / "other").mkdir()
    (base / "edm-ray-link").symlink_to(base / "other")
    (base / "edm-ray-new").mkdir()
    remove_abandoned(base)
    assert (base / "edm-ray-notes" / "mine.txt").exists() and (base / "edm-ray-link").exists()
    assert (base / "edm-ray-new").exists(), "it may be a moment old"
    os.utime(base / "edm-ray-new", (0, time.time() - 2 * session_folder.EMPTY_AGE_S))
    remove_abandoned(base)
    assert not (base / "edm-ray-new").exists()


@pytest.mark.parametrize(
    ("variables", "chosen"),
    [
        ({}, "/tmp"),
        ({"TMPDIR": "/"}, "/"),
        ({"TMPDIR": "/usr", "RAY_TMPDIR": "/"}, "/"),
        ({"TMPDIR": "/" + "x" * 90}, "/tmp"),
        ({"TMPDIR": "no/such"}, "/tmp"),
    ],
)
def test_it_lies_where_ray_would_put_it_unless_a_socket_s_name_would_be_too_long(monkeypatch, variables, chosen):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(session_folder._base()) == chosen
