"""Accumulation, precision, and several processes: the same parameters whichever way a batch goes through."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from edm_ray.checkpoint import open_model
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError
from edm_ray.training import engine
from edm_ray.training.engine import Place, Trainer, train
from edm_ray.training.run import claim_run, model_uri, read_metrics

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
    train(config, dataset, uri, place, {})
    return uri


def test_accumulating_gradients_changes_rounding_only(digits_dir, tmp_path):
    whole = _weights(_train(digits_dir, str(tmp_path / "whole"), AUGMENTED))
    parts = _weights(_train(digits_dir, str(tmp_path / "parts"), [*AUGMENTED, "micro_batch=5"]))
    assert float((whole - parts).norm() / whole.norm()) < 1e-5


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
    trainer = Trainer(config, ALONE)
    trainer.step(open_reader(dataset))
    assert all(parameter.grad is not None for parameter in trainer.parameters)


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


def _poison_rank_1() -> None:
    """Rank 1's gradients are NaN in its third step."""
    original, calls = engine.share_loss, itertools.count(1)

    def poisoned(*args: Any) -> Any:
        losses, sigmas = original(*args)
        return losses * (float("nan") if next(calls) == 3 else 1.0), sigmas

    engine.share_loss = poisoned


def _worker(rank: int, world_size: int, rendezvous: str, digits: str, uri: str, settings: list[str], bad: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    if bad and rank == 1:
        _poison_rank_1()
    _train(Path(digits), uri, settings, Place(rank=rank, world_size=world_size))
    dist.destroy_process_group()


def _train_together(world_size: int, digits_dir: Path, path: Path, settings: list[str], bad: bool = False) -> str:
    """Several processes, without Ray. They are forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edm_ray.training.engine", "edm_ray.config.presets", "pytest"])
    uri = str(path / "together")
    arguments = (world_size, str(path / "rendezvous"), str(digits_dir), uri, settings, bad)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(world_size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * world_size
    return uri


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_gives_the_same_parameters_to_rounding(digits_dir, tmp_path, world_size):
    """With dropout, label dropout, augmentation, accumulation and clipping; shares that do not divide included."""
    settings = [*AUGMENTED, "batch_size=25", "micro_batch=4", "optimizer.grad_clip=1", "total_kimg=0.2"]
    settings += ["denoiser.network.dropout=0.2", "denoiser.network.label_dropout=0.2", "tick_kimg=0.1"]
    alone = _weights(_train(digits_dir, str(tmp_path / "alone"), settings))
    uri = _train_together(world_size, digits_dir, tmp_path, settings)
    together = _weights(uri)
    assert float((alone - together).norm() / alone.norm()) < 1e-4
    assert read_metrics(uri)[-1]["loss"] == pytest.approx(read_metrics(str(tmp_path / "alone"))[-1]["loss"], rel=1e-4)


def test_a_gradient_that_is_not_finite_on_one_worker_is_seen_alike_by_all(digits_dir, tmp_path):
    """None hangs or drifts away: the two go on, to parameters that rank 0 alone writes."""
    uri = _train_together(2, digits_dir, tmp_path, ["total_kimg=0.12", "tick_kimg=0.12"], bad=True)
    (row,) = read_metrics(uri)
    assert (row["nonfinite"], row["steps"]) == (1, 5) and math.isfinite(row["loss"])
    assert bool(torch.isfinite(_weights(uri)).all())
