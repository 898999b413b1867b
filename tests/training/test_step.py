"""Accumulation, precision, and several processes: the same parameters whichever way a batch goes through."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from edm_ray.checkpoint import open_model
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.training.engine import Place, train
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


def _worker(rank: int, world_size: int, port: int, digits: str, uri: str, settings: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    _train(Path(digits), uri, settings, Place(rank=rank, world_size=world_size))
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_gives_the_same_parameters_to_rounding(digits_dir, tmp_path, world_size):
    """With dropout, label dropout, augmentation, accumulation and clipping; shares that do not divide included."""
    settings = [*AUGMENTED, "batch_size=25", "micro_batch=4", "optimizer.grad_clip=1", "total_kimg=0.2"]
    settings += ["denoiser.network.dropout=0.2", "denoiser.network.label_dropout=0.2", "tick_kimg=0.1"]
    alone = _weights(_train(digits_dir, str(tmp_path / "alone"), settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri, context = str(tmp_path / "together"), multiprocessing.get_context("spawn")
    arguments = (world_size, port, str(digits_dir), uri, settings)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(world_size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * world_size
    together = _weights(uri)
    assert float((alone - together).norm() / alone.norm()) < 1e-4
    assert read_metrics(uri)[-1]["loss"] == pytest.approx(read_metrics(str(tmp_path / "alone"))[-1]["loss"], rel=1e-4)
