"""The longest silence of each command on a terminal. By the clock, so for a quiet machine: `make test-slow`."""

from __future__ import annotations

import os

import pytest

from tests.cli.test_leaving import SPACE, SWEEP, model
from tests.terminal import Terminal

__all__ = ["model"]
FIRST_S, LONGEST_S = 1.0, 3.0
SLOWNESS = float(os.environ.get("EDM_RAY_TEST_SLOWNESS", "1"))
"""So many times as long is allowed."""
COMMANDS = {
    "prepare": "prepare photographs {out} --resolution 32 --num 20000",
    "train": "train --data {digits}/train --out {out} --preset digits --workers 0 --set total_kimg=3 tick_kimg=3",
    "train-ray": "train --data {digits}/train --out {out} --preset digits --workers 2 --set total_kimg=3 tick_kimg=3",
    "reference": "reference --data {digits}/train --extractor digits --out {out}",
    "generate": "generate --model {model} --num 50 --set num_steps=1000 --out {out}.png",
    "evaluate": "evaluate {against} --num 500 --set num_steps=300 --workers 0 --out {out}",
    "evaluate-ray": "evaluate {against} --num 1000 --workers 2 --out {out}",
    "sweep": "sweep {against} --space {space} {sweep} --workers 0 --out {out}",
    "sweep-ray": "sweep {against} --space {space} {sweep} --workers 2 --out {out}",
    "demo": "demo --quick --out {out}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_is_silent_for_long(digits_dir, digits_reference, model, tmp_path, name):
    against = f"--model {model} --reference {digits_reference}"
    where = {"digits": digits_dir, "against": against, "model": model, "space": SPACE, "sweep": SWEEP}
    command = COMMANDS[name].format(out=tmp_path / "out", **where)
    with Terminal(*command.split(), OMP_NUM_THREADS="1") as terminal:
        assert terminal.wait(580) == 0, terminal.story
    assert terminal.pieces[0][0] < FIRST_S * SLOWNESS
    longest, at = terminal.silences()[0]
    said = [text for when, text in terminal.pieces if when <= at][-1:]
    assert longest < LONGEST_S * SLOWNESS, f"{longest:.1f} s of silence at {at:.1f} s, after {said}"
