"""Real permissions and a real full disk, where `test_boundary` puts the same errors in: one line each, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edm_ray.models.directory import save_model
from edm_ray.networks.build import build_denoiser
from edm_ray.report.saved import save_report
from edm_ray.search.result import result_of
from tests.data.sources import make_folder, pixels_of
from tests.report.test_by_budget import CONTEXT, SPACE
from tests.search.worlds import driver_of, run, space_from
from tests.storage.test_sealed import CONFIG

COMMANDS = """
import contextlib, io, json, os, subprocess, sys
from edm_ray.cli import main

def tried(commands):
    for command in commands:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(command)
        yield code, said.getvalue()

print(json.dumps([list(tried(commands)) for commands in json.loads(sys.argv[1]) if not (
    isinstance(commands, str) and subprocess.run(commands, shell=True, check=True))]))
"""
"""One process runs all: lists of commands, and between them lines for a shell."""
WITHOUT = "-dac_override,-dac_read_search"
"""What lets root read and write everywhere."""
SMALL = ["model_channels=8", "num_blocks=1"]
TINY = ["--workers", "0", "--preset", "digits", "--set", "total_kimg=0.064", "batch_size=16"]
TINY += [f"denoiser.network.{each}" for each in SMALL]


def tried(*steps: list[list[str]] | str, prefix: list[str]) -> list[list[tuple[int, str]]]:
    command = [*prefix, sys.executable, "-c", COMMANDS, json.dumps(steps)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if prefix and "Operation not permitted" in ended.stderr:
        pytest.skip("not permitted on this machine")
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert "Traceback" not in str(said)
    return said


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos", pixels_of(20, 1, 8))


def save_tiny_model(path: Path) -> Path:
    save_model(str(path), CONFIG, build_denoiser(CONFIG).state_dict(), {})
    return path


def save_sweep(path: Path) -> Path:
    driver = driver_of(space_from(SPACE), strategy="random", num_global=4)
    run(driver, fid=lambda settings: 9.0)
    save_report(str(path), result_of(driver), CONTEXT)
    return path


def test_what_this_user_may_not_read_or_write_is_named(tmp_path, photos):
    prefix = []
    if os.geteuid() == 0:
        prefix = ["setpriv", f"--bounding-set={WITHOUT}", f"--inh-caps={WITHOUT}"]
        if shutil.which("setpriv") is None:
            pytest.skip("root may do everything, and there is no setpriv")
    closed, unlisted, grid = tmp_path / "closed", tmp_path / "unlisted", tmp_path / "g.png"
    closed.mkdir(), unlisted.mkdir()
    shutil.copytree(photos, tmp_path / "file"), shutil.copytree(photos, tmp_path / "class")
    model, sweep = save_tiny_model(tmp_path / "model"), save_sweep(tmp_path / "sweep")
    readable, config = save_tiny_model(tmp_path / "readable"), tmp_path / "c.yaml"
    config.write_text("seed: 1\n")
    picture = sorted((tmp_path / "file").rglob("*.png"))[0]
    hidden = next(path for path in sorted((tmp_path / "class").iterdir()) if path.is_dir())
    settings = next(path for path in sweep.iterdir() if path.suffix == ".json")
    for path in (picture, hidden, unlisted, model / "config.json", config, settings):
        path.chmod(0)
    closed.chmod(0o555)
    data, denied = str(tmp_path / "d"), "Permission denied for this user: allow it, or give another place"
    cases = [
        (["prepare", str(tmp_path / "file"), data], f"{picture.name}: may not be read: Permission denied"),
        (["prepare", str(tmp_path / "class"), data], "cannot be read (Permission denied), so its files would be"),
        (["prepare", str(photos), str(closed / "d")], "may not be written to by this user"),
        (["prepare", str(photos), str(unlisted / "d")], "cannot be written: Permission denied"),
        (["generate", "--model", str(model), "--out", str(grid)], f"{model}/config.json: {denied}"),
        (["generate", "--model", str(model), "--out", str(closed / "g.png")], "may not be written to by this user"),
        (["generate", "--model", str(readable), "--sampler", str(config), "--out", str(grid)], f"{config}: {denied}"),
        (["report", str(sweep)], f"{settings}: {denied}"),
    ]
    try:
        (said,) = tried([case for case, _ in cases], prefix=prefix)
    finally:
        for path in (hidden, unlisted, closed):
            path.chmod(0o755)
    for (case, expected), (code, line) in zip(cases, said, strict=True):
        assert code == 2 and expected in line, (case, code, line)
    assert not list(closed.iterdir()) and not list(unlisted.iterdir())
    assert not (tmp_path / "d" / "manifest.json").exists() and not grid.exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a disk of its own needs root")
def test_a_disk_that_is_really_full_is_named_and_the_same_commands_end_well_on_a_larger_one(tmp_path, photos):
    disk, data, parts = tmp_path / "disk", tmp_path / "data", tmp_path / "parts"
    disk.mkdir()
    model, sweep = save_tiny_model(tmp_path / "model"), save_sweep(tmp_path / "sweep")
    (sweep / "report.html").unlink()
    sample = ["generate", "--model", str(model), "--num", "200", "--set", "num_steps=2", "--out"]
    commands = [
        ["prepare", str(photos), str(disk / "data"), "--encoding", "raw"],
        ["train", "--data", str(data), "--out", str(disk / "run"), *TINY],
        [*sample, str(disk / "g.zip")],
        [*sample, str(disk / "samples")],
        ["report", str(disk / "sweep")],
    ]
    filled = f"cp -r {sweep} {disk}/sweep; cat /dev/zero > {disk}/fill 2>/dev/null; truncate -s -16K {disk}/fill"
    before, full, after = tried(
        [["prepare", str(photos), str(data)]],
        filled,
        commands,
        f"find {disk} -name '.*.part' > {parts}; mount -o remount,size=64m {disk}",
        commands,
        prefix=["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=512k none {disk} && exec "$@"', "sh"],
    )
    assert [code for code, _ in before] == [0]
    for command, (code, line) in zip(commands, full, strict=True):
        said = line.splitlines()[-1]
        full_of = said.startswith(f"edm-ray: {disk}/") and "no space left" in said
        planned = command[0] == "generate" and f"{disk} has 0.0 GiB free; give fewer, or another place" in said
        assert code == 2 and (full_of or planned), (command, code, line)
    assert not parts.read_text(), "what was written by half takes the little space that there is"
    for command, (code, line) in zip(commands, after, strict=True):
        assert code == 0, (command, code, line)
