"""The goodput benchmark: its account of a strike, from marks that are made up; and all of it, at toy size."""

from __future__ import annotations

import itertools
import json

import pytest

from benchmarks import goodput
from benchmarks.goodput import BATCH, KINDS, Run, Strike, costs, table, victims_to_come


def _step(moment: float, pid: int, nimg: int) -> dict:
    return {"name": "step", "moment": moment, "pid": pid, "nimg": nimg}


def test_each_kind_of_victim_is_struck_once_in_three_and_the_seed_decides_the_order() -> None:
    chosen = [[kind for kind, _ in itertools.islice(victims_to_come(seed), 30)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(set(chosen[0][first : first + 3]) == set(KINDS) for first in range(0, 30, 3))


def test_a_strike_is_charged_with_the_wait_and_with_the_images_since_the_checkpoint(tmp_path) -> None:
    rows = [_step(float(second), 1, BATCH * second) for second in range(1, 21)]
    rows += [{"name": "controller: RestartingState", "moment": 20.75, "pid": 9}]
    rows += [_step(30.0 + second, 2, BATCH * (15 + second)) for second in range(1, 5)]  # from the checkpoint at 15
    (tmp_path / "marks").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(tmp_path, strikes=[Strike("worker", 20.25, 20.25), Strike("driver", 33.5, 34.0)])
    (found,) = costs(run, images_per_s=BATCH)
    assert found == {
        "kind": "worker",
        "noticed, s": 0.5,
        "restart, s": 31 - 20.75,
        "images made twice": 5 * BATCH,
        "the same, s": 5.0,
        "all, s": 31 - 20.25 + 5,
    }, "the second had no step after it, so nothing is known of it"
    assert "| worker | 1 | 0.5 |" in table([found])


@pytest.mark.ray
@pytest.mark.fault
@pytest.mark.timeout(900)
def test_a_run_that_is_struck_has_the_bits_of_a_calm_one_and_every_strike_is_accounted_for(
    tmp_path, monkeypatch
) -> None:
    kept = {}
    monkeypatch.setattr(goodput, "record", lambda name, numbers, settings: kept.update(numbers))
    goodput.main(["--kimg", "38.4", "--every", "0.45", "--out", str(tmp_path / "out")])  # it exits where bits differ
    (share,) = kept["each 0.45 min: goodput"][1]
    assert 0.1 < share < 1.0
    waited = [value for name, (_, values) in kept.items() if "restart, s" in name for value in values]
    assert waited and all(0 < value < 200 for value in waited)
