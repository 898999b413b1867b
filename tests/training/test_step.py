"""Accumulation, precision, and several processes: the same parameters whichever way a batch goes through."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.training import step
from edm_ray.training.device import Place
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store, claim_run, model_uri
from edm_ray.training.signals import no_signal
from edm_ray.training.state import TrainingState
from edm_ray.training.step import TrainingStep
from tests.training.together import DIVERGED, run_together

ALONE = Place()
AUGMENTED = ["augment.probability=0.5", "denoiser.network.augment_dim=9"]


def _weights(uri: str) -> torch.Tensor:
    state = safetensors.torch.load(open_model(model_uri(uri)).weights)
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


def _train(digits_dir: Path, uri: str, settings: list[str], place: Place = ALONE) -> str:
    dataset = open_dataset(str(digits_dir / "train"))
    config = configure(tiny(dataset.shape), None, settings)
    if place.rank == 0:
        claim_run(uri, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=uri), place)
    return uri


def test_accumulating_gradients_changes_rounding_only(digits_dir, tmp_path):
    whole = _weights(_train(digits_dir, str(tmp_path / "whole"), AUGMENTED))
    parts = _weights(_train(digits_dir, str(tmp_path / "parts"), [*AUGMENTED, "micro_batch=5"]))
    assert float((whole - parts).norm() / whole.norm()) < 1e-5


@pytest.mark.slow
def test_a_compiled_network_trains_the_same_to_rounding(digits_dir, tmp_path, monkeypatch):
    """Traced as a whole and run without a code generator, which takes minutes."""
    compiled = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiled)
    plain = _weights(_train(digits_dir, str(tmp_path / "plain"), AUGMENTED))
    other = _weights(_train(digits_dir, str(tmp_path / "compiled"), [*AUGMENTED, "compile=true", "micro_batch=9"]))
    assert float((plain - other).norm() / plain.norm()) < 1e-5


def test_every_parameter_has_a_gradient_also_where_the_augmentation_is_off(digits_dir):
    """DistributedDataParallel would wait for one that has none."""
    dataset = open_dataset(str(digits_dir / "train"))
    config = configure(tiny(dataset.shape), None, AUGMENTED[1:])
    state = TrainingState(config, torch.device("cpu"))
    TrainingStep(config, ALONE, state).take(open_reader(dataset))
    assert all(parameter.grad is not None for parameter in state.parameters)


def test_bf16_trains_close_to_fp32_with_parameters_in_fp32(digits_dir, tmp_path):
    low = _train(digits_dir, str(tmp_path / "bf16"), ["precision=bf16"])
    full = _train(digits_dir, str(tmp_path / "fp32"), [])
    state = safetensors.torch.load(open_model(model_uri(low)).weights)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    for a, b in zip(read_metrics(low), read_metrics(full), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02) and a["loss"] != b["loss"]


def test_fp16_on_a_cpu_is_refused_with_what_is_allowed(digits_dir, tmp_path):
    with pytest.raises(InputError, match="precision='fp16' is not allowed on cpu: fp32 or bf16"):
        _train(digits_dir, str(tmp_path), ["precision=fp16"])


def test_augmentation_needs_a_network_that_is_told(digits_dir, tmp_path):
    with pytest.raises(InputError, match=r"augment_dim=0 is not allowed: 9 with augment.probability=0.5"):
        _train(digits_dir, str(tmp_path), ["augment.probability=0.5"])


def test_the_loss_of_a_tick_is_kept_by_noise_level(digits_dir, tmp_path):
    rows = read_metrics(_train(digits_dir, str(tmp_path), []))
    for row in rows:
        known = [value for value in row["loss_by_sigma"] if value is not None]
        assert len(row["loss_by_sigma"]) == 8 and min(known) <= row["loss"] <= max(known)
        assert row["data_wait"] >= 0 and row["memory_mib"] > 10 and row["checkpoint_stall_s"] >= 0


def _poisoned(log: str | None, rank: int) -> Any:
    """Rank 1's gradients are NaN in its third step; each rank says in a file how often it took a step and with what."""
    original, calls = step.round_loss, itertools.count(1)

    def round_loss(*args: Any) -> Any:
        losses, sigmas = original(*args)
        return losses * (float("nan") if next(calls) == 3 and rank == 1 else 1.0), sigmas

    step.round_loss, adam, steps = round_loss, torch.optim.Adam.step, []

    def adam_step(optimizer: torch.optim.Adam) -> None:
        adam(optimizer)
        steps.append(1)
        parameters = torch.cat([p.detach().flatten() for p in optimizer.param_groups[0]["params"]])
        torch.save({"steps": len(steps), "parameters": parameters}, f"{log}-{rank}")

    if log is not None:
        torch.optim.Adam.step = adam_step
    return no_signal


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_workers_gives_the_same_parameters_to_rounding(digits_dir, tmp_path, world_size):
    """With dropout, label dropout, augmentation, accumulation and clipping; shares that do not divide included."""
    settings = [*AUGMENTED, "batch_size=25", "micro_batch=4", "optimizer.grad_clip=1", "total_kimg=0.2"]
    settings += ["denoiser.network.dropout=0.2", "denoiser.network.label_dropout=0.2", "tick_kimg=0.1"]
    alone = _weights(_train(digits_dir, str(tmp_path / "alone"), settings))
    uri = str(tmp_path / "together")
    assert run_together(world_size, str(digits_dir / "train"), uri, settings) == [0] * world_size
    together = _weights(uri)
    assert float((alone - together).norm() / alone.norm()) < 1e-4
    assert read_metrics(uri)[-1]["loss"] == pytest.approx(read_metrics(str(tmp_path / "alone"))[-1]["loss"], rel=1e-4)


def test_a_gradient_that_is_not_finite_on_one_worker_ends_all_before_that_step(digits_dir, tmp_path):
    """None hangs; both have taken two steps, to the same parameters, and only what was saved before is there."""
    uri, log = str(tmp_path / "run"), str(tmp_path / "steps")
    settings = ["total_kimg=0.12", "tick_kimg=0.024", "checkpoint_kimg=0.024"]
    begin = functools.partial(_poisoned, log)
    assert run_together(2, str(digits_dir / "train"), uri, settings, begin) == [DIVERGED] * 2
    one, two = (torch.load(f"{log}-{rank}", weights_only=True) for rank in range(2))
    assert one["steps"] == two["steps"] == 2 and torch.equal(one["parameters"], two["parameters"])
    assert bool(torch.isfinite(one["parameters"]).all()) and checkpoint_store(uri).committed() == [24, 48]
    assert [row["nimg"] for row in read_metrics(uri)] == [24, 48]


def test_with_replace_a_gradient_that_is_not_finite_on_one_worker_is_seen_alike_by_all(digits_dir, tmp_path):
    """None hangs or drifts away: the two go on, to parameters that rank 0 alone writes."""
    uri, settings = str(tmp_path / "run"), ["total_kimg=0.12", "tick_kimg=0.12", "optimizer.nonfinite=replace"]
    begin = functools.partial(_poisoned, None)
    assert run_together(2, str(digits_dir / "train"), uri, settings, begin) == [0, 0]
    (row,) = read_metrics(uri)
    assert (row["nonfinite"], row["steps"]) == (1, 5) and math.isfinite(row["loss"])
    assert bool(torch.isfinite(_weights(uri)).all())
