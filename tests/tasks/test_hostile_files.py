"""Nothing that is read back from a run, a sweep, a data set or any other output is a pickle: every file is replaced by
one that would run a command, and the same command is run again. It may fail, in words; it runs nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from edm_ray.cli import main
from tests.tasks.commands import COMMANDS, Ingredients, ingredients

READERS = {
    "train": lambda given, out: [
        ["report", out],
        ["inspect", out],
        ["ema", out, f"{out}/average", "--sigma-rel", "0.05"],
        ["generate", "--model", f"{out}/model", "--out", f"{out}/samples", "--num", "10", "--set", "num_steps=2"],
        ["train", "--data", given.data, "--out", out, "--preset", "tiny", "--workers", "0", "--fresh", "--dry-run"],
    ],
    "prepare": lambda given, out: [
        ["inspect", out],
        ["train", "--data", out, "--out", f"{out}-run", "--preset", "tiny", "--workers", "0", "--dry-run"],
        ["reference", "--data", out, "--out", f"{out}-reference", "--extractor", "digits"],
    ],
    "reference": lambda given, out: [
        ["evaluate", "--model", given.model, "--reference", out, "--num", "100", "--workers", "0"],
    ],
    "sweep": lambda given, out: [["report", out]],
}
"""Other commands that read what a command has written."""


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def given(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingredients:
    return ingredients(tmp_path_factory.mktemp("given"), digits_dir)


@pytest.fixture(scope="module")
def written(given, tmp_path_factory) -> dict[str, Path]:
    """Command -> the folder it wrote."""
    base, folders = tmp_path_factory.mktemp("written"), {}
    for name in COMMANDS:
        if name != "train --fresh":
            folders[name] = base / name
            assert main(COMMANDS[name](given, str(folders[name]))) == 0
    return folders


def poison(folder: Path, payload: bytes, keep_manifests: bool) -> int:
    """Replace every file; with ``keep_manifests`` as someone does who can compute hashes. How many were replaced."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        if not (keep_manifests and path.suffix in (".json", ".jsonl", ".yaml")):
            path.write_bytes(payload)
    for path in files if keep_manifests else []:
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            for name, entry in manifest["files"].items():
                content = (path.parent / name).read_bytes()
                entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            path.write_text(json.dumps(manifest))
    return len(files)


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep_manifests", [False, True], ids=["all", "hashes that fit"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train --fresh"])
def test_every_file_of_an_output_replaced_by_a_pickle_runs_nothing(
    written, given, tmp_path, capsys, name, keep_manifests
):
    out, ran = tmp_path / "out", tmp_path / "ran"
    payload = pickle.dumps(Payload(ran))
    again = [lambda given, out: [COMMANDS[name](given, out)], READERS.get(name, lambda given, out: [])]
    if name == "train":
        again.append(lambda given, out: [COMMANDS["train --fresh"](given, out)])
    for commands in again:
        for command in commands(given, str(out)):
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(written[name], out)
            assert poison(out, payload, keep_manifests) >= 2
            code = main(command)
            said = capsys.readouterr()
            assert not ran.exists(), command
            assert "Traceback" not in said.err and code in (0, 1, 2), (command, said.err)
