"""What one worker is told, all do after the same step; and what was saved there is gone on from bit for bit."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from edm_ray.models import open_model
from edm_ray.training.device import Place
from edm_ray.training.metrics import Tally, read_metrics
from edm_ray.training.run import checkpoint_store, model_uri
from edm_ray.training.signals import Signal
from tests.training.together import STOPPED, run_together, train_in_process

CLOCKS = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}
# 24 images a step; a tick every 4 steps, a checkpoint every 8; 12 steps.
SETTINGS = ["total_kimg=0.288", "tick_kimg=0.096", "checkpoint_kimg=0.192", "keep_checkpoints=9"]
SETTINGS += ["denoiser.network.dropout=0.1", "optimizer.grad_clip=0.5"]


def _tell(rank_told: int, signal: Signal, first: int, last: int, rank: int):
    """One rank alone is told, in the steps from first to last."""
    steps = itertools.count(1)
    return lambda: signal if first <= next(steps) <= last and rank == rank_told else Signal.NONE


def _result(uri: str):
    rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_metrics(uri)]
    return open_model(model_uri(uri)).weights, rows


@pytest.fixture(scope="module")
def data(digits_dir) -> str:
    return str(digits_dir / "heldout")


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_stop_that_one_worker_hears_of_ends_all_after_one_step_and_all_resume_bit_for_bit(data, tmp_path, world_size):
    """In the middle of a tick: the sums of every worker are in the checkpoint. Told in step 5, known in step 6."""
    calm, told = str(tmp_path / "calm"), str(tmp_path / "told")
    assert run_together(world_size, data, calm, SETTINGS) == [0] * world_size
    tell = functools.partial(_tell, world_size - 1, Signal.STOP, 5, 99)
    assert run_together(world_size, data, told, SETTINGS, tell) == [STOPPED] * world_size
    assert checkpoint_store(told).committed() == [6 * 24]
    assert run_together(world_size, data, told, SETTINGS) == [0] * world_size
    assert _result(told) == _result(calm)


def test_a_notice_that_one_worker_gets_makes_a_checkpoint_at_once_and_training_continues(data, tmp_path):
    """Told in steps 1 to 3: known in 2 to 4, of which 4 is a tick."""
    uri = str(tmp_path / "run")
    assert run_together(2, data, uri, SETTINGS, functools.partial(_tell, 1, Signal.SAVE, 1, 3)) == [0, 0]
    assert checkpoint_store(uri).committed() == [2 * 24, 4 * 24, 8 * 24, 12 * 24]


def test_a_run_of_two_that_stopped_within_a_tick_is_gone_on_with_by_one(data, tmp_path):
    """Elastic: nothing of the tick's sums is lost with the worker."""
    calm, told = str(tmp_path / "calm"), str(tmp_path / "told")
    train_in_process(data, calm, SETTINGS, Place())
    tell = functools.partial(_tell, 0, Signal.STOP, 5, 99)
    assert run_together(2, data, told, SETTINGS, tell) == [STOPPED] * 2
    train_in_process(data, told, SETTINGS, Place())
    for one, other in zip(read_metrics(calm), read_metrics(told), strict=True):
        assert one["steps"] == other["steps"] == 4
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_sums_go_to_the_same_rank_or_all_to_the_first():
    parts = []
    for rank in range(2):
        tally = Tally(torch.device("cpu"))
        tally.add_losses(torch.tensor([1.0 + rank, 2.0]), torch.tensor([0.5, 50.0]))
        tally.add_step(torch.tensor(3.0), torch.tensor(1.0))
        parts.append(tally.sums())
    for world_size, losses in ((2, [3.0, 4.0]), (1, [7.0]), (3, [7.0, 0.0, 0.0])):
        for rank, wanted in enumerate(losses):
            tally = Tally(torch.device("cpu"))
            tally.restore(torch.stack(parts), rank, world_size)
            assert (float(tally.losses.sum()), float(tally.norm), float(tally.nonfinite)) == (wanted, 3.0, 1.0)
            assert tally.steps == 1 and float(tally.counts.sum()) == {3.0: 2, 4.0: 2, 7.0: 4, 0.0: 0}[wanted]
