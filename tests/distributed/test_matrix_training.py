"""The fault matrix, a training on a Ray of its own: each of its processes struck at each moment in each way.

The command comes to its end, or it ends and the same command resumes; parameters and metrics are those of a calm run.
Opt-in; `tests/faults.py` is the table.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edm_ray.distributed.patience import SILENT
from tests.distributed.test_training_kills import _result
from tests.storage.proxies import s3_server
from tests.strikes import PARTS, Command, Gate, ray_parts, strike
from tests.training.faults import SETTINGS

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(900)]
SIGKILL, SIGSTOP, CUT = "SIGKILL", "SIGSTOP", "cut connection"
ALL = (SIGKILL, SIGSTOP, CUT)
GATES = {
    "start": "group starts",
    "first step": "first step",
    "mid-tick": "in a step",
    "saving": "checkpoint",
    "uploading": "checkpoint",
    "ending": "model",
}
"""Moment -> where a rank waits meanwhile."""
WANTED = {
    "worker": {
        **dict.fromkeys(("start",), ALL),
        **dict.fromkeys(("first step", "saving", "ending"), (SIGSTOP, CUT)),
        "mid-tick": (CUT,),
        "uploading": (SIGSTOP,),
    },
    "driver": {
        "start": ALL,
        "mid-tick": (CUT,),
        **dict.fromkeys(("first step", "saving", "uploading", "ending"), (SIGSTOP, CUT)),
    },
    "controller": {**dict.fromkeys(("start", "first step", "ending"), ALL), "mid-tick": (CUT,)},
    "raylet": {**dict.fromkeys(("start", "first step", "saving", "uploading", "ending"), ALL), "mid-tick": (CUT,)},
    "head": {**dict.fromkeys(("start", "first step", "ending"), ALL), "mid-tick": (SIGSTOP, CUT)},
}
"""What other tests do not do."""
CELLS = [
    (victim, moment, kind) for victim, moments in WANTED.items() for moment, kinds in moments.items() for kind in kinds
]


def _command(data: Path, out: str, log: Path, variables: dict[str, str]) -> Command:
    words = ["train", "--data", str(data), "--out", out, "--preset", "tiny", "--workers", "2", "--set", *SETTINGS]
    return Command(words, log, {SILENT: "5", **variables})


@pytest.fixture(scope="module")
def calm(digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    command = _command(digits_dir / "heldout", str(folder / "run"), folder / "log", {})
    command.start()
    command.to_the_end(tries=1)
    return _result(folder / "run")


@pytest.fixture(scope="module")
def bucket():
    with s3_server("matrix"):
        yield "s3://matrix"


@pytest.mark.parametrize(("victim", "moment", "kind"), CELLS)
def test_a_process_of_a_training_that_is_struck_at_any_moment_changes_no_bit(
    digits_dir, calm, bucket, tmp_path, victim, moment, kind
):
    gate = Gate(tmp_path / "gate", GATES[moment])
    out = f"{bucket}/{victim}-{kind.split()[0]}" if moment == "uploading" else str(tmp_path / "run")
    command = _command(digits_dir / "heldout", out, tmp_path / "log", gate.variables)
    driver = command.start()
    try:
        rank = gate.reached(meanwhile=lambda: driver.poll() is None)
        pids = {"worker": [rank], "driver": [driver.pid]}.get(victim) or ray_parts(driver.pid, PARTS[victim])
        assert len(pids) == 1
        began = time.monotonic()
        strike(kind, *pids)
        gate.open()
        if (victim, kind) == ("driver", SIGSTOP):
            command.taken_over_by_another()
        command.to_the_end()
        sys.stdout.write(f"{victim} {moment} {kind}: {time.monotonic() - began:.0f} s\n{command.log.read_text()}\n")
    finally:
        gate.open()
        command.end()
    assert _result(out) == calm
