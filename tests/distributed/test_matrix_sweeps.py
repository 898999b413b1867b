"""The fault matrix, a sweep on a Ray of its own while it confirms on fresh seeds: command, node and head are struck in
each way. The same decisions and numbers. Opt-in; `tests/faults.py` is the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edm_ray.cli import main
from edm_ray.distributed.patience import SILENT
from tests.strikes import PARTS, Command, Gate, ray_parts, strike
from tests.tasks.commands import SPACE

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(1500)]
KINDS = ("SIGKILL", "SIGSTOP", "cut connection")
SIZES = [
    *("--chunk-size", "50", "--initial-chunks", "1", "--max-chunks", "1", "--num-line", "1", "--num-global", "0"),
    *("--num-model", "0", "--confirm-chunks", "2", "--grid", "10", "--workers", "1", "--concurrent", "2"),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory, digits_dir, digits_reference):
    root, data = tmp_path_factory.mktemp("matrix"), str(digits_dir / "train")
    assert main(["train", "--data", data, "--out", str(root / "run"), "--preset", "tiny", "--no-ray"]) == 0
    (root / "space.yaml").write_text(SPACE)
    parts = ["--model", str(root / "run" / "model"), "--reference", digits_reference]
    return ["sweep", *parts, "--space", str(root / "space.yaml"), *SIZES, "--out"]


@pytest.fixture(scope="module")
def calm(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    command = Command([*words, str(folder / "sweep")], folder / "log", {}, cpus=3)
    command.start()
    command.to_the_end(tries=1)
    return _decided(folder / "sweep")


def _decided(out: Path) -> dict[str, Any]:
    result = json.loads((out / "sweep.json").read_text())
    for trial in result["trials"]:
        trial.pop("seconds")
    return {name: result[name] for name in ("trials", "decisions", "best", "confirmed")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", ["driver", "raylet", "head"])
def test_a_sweep_that_is_struck_while_it_confirms_decides_the_same(words, calm, tmp_path, victim, kind):
    gate = Gate(tmp_path / "gate", "confirming")
    command = Command([*words, str(tmp_path / "sweep")], tmp_path / "log", {SILENT: "5", **gate.variables}, cpus=3)
    driver = command.start()
    try:
        gate.reached(meanwhile=lambda: driver.poll() is None)
        (pid,) = [driver.pid] if victim == "driver" else ray_parts(driver.pid, PARTS[victim])
        strike(kind, pid)
        gate.open()
        if (victim, kind) == ("driver", "SIGSTOP"):
            command.taken_over_by_another()
        command.to_the_end()
    finally:
        gate.open()
        command.end()
    assert _decided(tmp_path / "sweep") == calm
