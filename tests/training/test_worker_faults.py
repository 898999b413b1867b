"""SIGKILL of one or both of two workers that torch.distributed has joined, without Ray, at every kind of moment.

The one that is left must end and not hang, and the same command afterwards ends with the bits of a calm run of two.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from edm_ray.storage import uris
from edm_ray.training.run import checkpoint_store
from tests.storage.proxies import s3_server
from tests.training.faults import POINTS, end_workers, result_of, start_workers

IN_STEPS = [point for point, (_, name, *_) in POINTS.items() if name == "take"]
ALWAYS = [("in the middle of an epoch", 1, False), ("before a checkpoint's manifest", 0, False)]
ALWAYS += [("while the first checkpoint is written", 0, True)]
# Worker 0 alone writes, so worker 1 can be the first to die in a step only.
ALL = [(point, victim, both) for point in POINTS for victim in (0, 1) for both in (False, True)]
REST = [case for case in ALL if case not in ALWAYS and (case[1] == 0 or case[0] in IN_STEPS)]


@pytest.fixture(scope="module")
def data(digits_dir) -> str:
    return str(digits_dir / "heldout")


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("calm")
    assert end_workers(start_workers(data, str(path / "run"), path / "rendezvous")) == [0, 0]
    return result_of(str(path / "run"))


def _strike(data: str, path: Path, point: str, victim: int, both: bool) -> None:
    """Two workers, of which one dies at ``point``; without ``both`` the other has to notice by itself."""
    workers = start_workers(data, str(path / "run"), path / "rendezvous", victim, point)
    codes = end_workers(workers, kill_all=both)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in _ends(both)


def _ends(both: bool) -> set[int]:
    """Of the other worker. One that is to be killed too may have noticed before."""
    return {1, -signal.SIGKILL} if both else {1}


@pytest.mark.parametrize(
    ("point", "victim", "both"),
    [*ALWAYS, *(pytest.param(*case, marks=pytest.mark.fault) for case in REST)],
)
def test_two_workers_of_which_one_or_both_are_killed_end_with_the_bits_of_a_calm_run(
    data, calm, tmp_path, point, victim, both
):
    _strike(data, tmp_path, point, victim, both)
    assert not uris.exists(str(tmp_path / "run" / "model" / "manifest.json")), "killed in mid-run, not after it"
    assert end_workers(start_workers(data, str(tmp_path / "run"), tmp_path / "rendezvous")) == [0, 0]
    assert result_of(str(tmp_path / "run")) == calm


@pytest.mark.fault
@pytest.mark.parametrize("seed", range(5))
def test_two_workers_killed_again_and_again_at_random_end_with_the_bits_of_a_calm_run(data, calm, tmp_path, seed):
    chance, kills, longest = random.Random(seed), 0, 2.5
    while True:
        workers = start_workers(data, str(tmp_path / "run"), tmp_path / "rendezvous")
        if kills < 12:
            time.sleep(chance.uniform(0.2, longest))
            for worker in chance.sample(workers, chance.choice((1, 2))):
                worker.kill()
        if end_workers(workers) != [0, 0]:
            kills += 1
        elif kills:
            break
        else:  # a fast machine: it had ended before
            shutil.rmtree(tmp_path / "run")
            longest /= 2
    assert result_of(str(tmp_path / "run")) == calm


@pytest.mark.fault
@pytest.mark.parametrize("both", [False, True])
def test_two_workers_killed_within_an_upload_to_s3_end_with_the_bits_of_a_calm_run(data, calm, tmp_path, both):
    with s3_server("runs"):
        context = multiprocessing.get_context("spawn")  # the fork server was started without these variables
        uri, point = f"s3://runs/two-{both}", "while the first checkpoint is written"
        workers = start_workers(data, uri, tmp_path / "rendezvous", 0, point, context)
        codes = end_workers(workers, kill_all=both)
        assert codes[0] == -signal.SIGKILL and codes[1] in _ends(both)
        assert uris.list_names(f"{uri}/checkpoints") and not checkpoint_store(uri).committed()
        assert end_workers(start_workers(data, uri, tmp_path / "rendezvous", context=context)) == [0, 0]
        assert result_of(uri) == calm
