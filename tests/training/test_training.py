from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from edm_ray.config.load import configure
from edm_ray.config.network import OwnNetwork
from edm_ray.config.presets import tiny
from edm_ray.config.training import EmaConfig, OptimizerConfig
from edm_ray.data.manifest import open_dataset
from edm_ray.data.order import rank_positions
from edm_ray.data.reader import open_reader
from edm_ray.diffusion.objectives import OBJECTIVES
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.networks.build import build_denoiser
from edm_ray.training import checkpoints, grid, step
from edm_ray.training.device import Place
from edm_ray.training.ema import ema_beta, update_ema
from edm_ray.training.loop import Stopped, TrainingJob, train
from edm_ray.training.loss import make_objective, share_loss
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import checkpoint_store, claim_run, grid_uri, model_uri
from edm_ray.training.signals import Signal
from edm_ray.training.state import TrainingState
from edm_ray.training.step import Diverged, TrainingStep, learning_rate, settle_gradients


@pytest.fixture(scope="module")
def dataset(digits_dir):
    return open_dataset(str(digits_dir / "train"))


@pytest.fixture(scope="module")
def config(dataset):
    return tiny(dataset.shape)


AUGMENT_DIM = "denoiser.network.augment_dim=9"
CLOCKS = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}


def _timeless(rows):
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["augment.probability=0.5", AUGMENT_DIM, "optimizer.grad_clip=0.5", "micro_batch=7", "xflip=true"]
        + ["ema.sigma_rels=[0.05, 0.1]", "ema.snapshot_kimg=0.096", "denoiser.network.label_dropout=0.1"],
    ],
    ids=["plain", "everything"],
)
def test_resume_is_bit_exact_after_a_kill_at_any_step(dataset, config, tmp_path, monkeypatch, settings):
    """An interrupted and resumed run equals a calm one in every tensor and every metric, dropout included."""
    config = configure(config, None, settings)
    calm = str(tmp_path / "calm")
    claim_run(calm, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=calm))
    loss = read_metrics(calm)[-1]["loss"]
    assert f"| training loss, last tick | {loss:.6g} |" in (Path(model_uri(calm)) / "README.md").read_text()
    for stop_at in (1, 5, 9):  # before the first checkpoint, between checkpoints, at the end
        uri, steps, original = str(tmp_path / f"run{stop_at}"), 0, TrainingStep.take

        def step(self, pixels, stop_at=stop_at, original=original):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise KeyboardInterrupt
            return original(self, pixels)

        claim_run(uri, config, dataset)
        monkeypatch.setattr(TrainingStep, "take", step)
        with pytest.raises(KeyboardInterrupt):
            train(TrainingJob(config=config, dataset=dataset, run_uri=uri))
        monkeypatch.setattr(TrainingStep, "take", original)
        claim_run(uri, config, dataset)
        train(TrainingJob(config=config, dataset=dataset, run_uri=uri))
        for name in ("model.safetensors", "config.json", "README.md", "manifest.json"):
            assert (Path(model_uri(uri)) / name).read_bytes() == (Path(model_uri(calm)) / name).read_bytes()
        assert _timeless(read_metrics(uri)) == _timeless(read_metrics(calm))
        for snapshot in Path(calm).glob("ema-snapshots/*/*"):
            assert (Path(uri) / snapshot.relative_to(calm)).read_bytes() == snapshot.read_bytes()


def test_gradients_of_shares_add_up_to_the_gradient_of_the_batch_for_any_world_size(dataset, config):
    """With dropout: what DDP would average, times the world size, is the whole batch's gradient."""
    config = configure(config, None, ["denoiser.network.dropout=0.2", "augment.probability=0.5", AUGMENT_DIM])
    pixels, objective = open_reader(dataset), make_objective(config)

    def gradient(world_size):
        state = TrainingState(config, torch.device("cpu"))
        for rank in range(world_size):
            positions = rank_positions(48, config.batch_size, rank, world_size, config.lanes)
            images, labels = pixels.at(positions, config.seed)
            losses, _ = share_loss(state.denoiser, objective, images, labels, positions, config, torch.device("cpu"))
            (losses.sum() / config.batch_size).backward()
        return torch.cat([p.grad.flatten() for p in state.parameters])

    whole = gradient(1)
    for world_size in (2, 3, 4, 5):
        assert float((gradient(world_size) - whole).norm() / whole.norm()) < 1e-5


def test_the_loss_falls(dataset, config, tmp_path):
    config = configure(config, None, ["total_kimg=2.4", "tick_kimg=0.48", "checkpoint_kimg=2.4", "optimizer.lr=0.003"])
    claim_run(str(tmp_path), config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    losses = [row["loss"] for row in read_metrics(str(tmp_path))]
    assert losses[-1] < 0.75 * losses[0]


def test_the_edm_loss_of_a_zero_network_is_the_weight_times_what_is_left():
    """D = c_skip x for F = 0, so the loss is known in closed form."""
    objective = OBJECTIVES["edm"](sigma_data=0.5)
    images, noise, draw = torch.full((2, 1, 1, 1), 0.3), torch.full((2, 1, 1, 1), -1.0), torch.tensor([0.0, 1.0])
    sigma = torch.exp(draw * 1.2 - 1.2).reshape(-1, 1, 1, 1)
    skip = 0.25 / (sigma**2 + 0.25)
    loss = objective.loss(lambda x, s, *_: 0.25 / (s.reshape(-1, 1, 1, 1) ** 2 + 0.25) * x, images, draw, noise)
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * (skip * (0.3 - sigma) - 0.3) ** 2
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_ema_keeps_half_after_a_half_life_and_ramps_up():
    config = EmaConfig(halflife_kimg=1.0, rampup_ratio=0.0)
    assert ema_beta(config, 10**6, 1000) == pytest.approx(0.5)
    ramped = EmaConfig(halflife_kimg=1.0, rampup_ratio=0.05)
    assert ema_beta(ramped, 0, 100) == 0.0
    assert ema_beta(ramped, 2000, 100) == pytest.approx(0.5)  # half-life 100 images by then
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.25 * a.weight + 0.75 * b.weight
    update_ema(a, b, 0.25)
    assert torch.allclose(a.weight, expected)


def test_the_learning_rate_ramps_over_images_from_zero():
    config = OptimizerConfig(lr=1.0, ramp_kimg=1.0)
    assert [learning_rate(config, n) for n in (0, 500, 1000, 9999)] == [0.0, 0.5, 1.0, 1.0]
    assert learning_rate(OptimizerConfig(lr=1.0, ramp_kimg=0.0), 0) == 1.0


def test_non_finite_gradients_are_replaced_and_counted():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    norm, count = settle_gradients([parameter], 1.0, 0.0)
    assert count == 1 and parameter.grad.tolist() == [1.0, 0.0, 1e5, -1e5] and bool(torch.isfinite(norm))
    assert settle_gradients([parameter], 1.0, 0.0)[1] == 0


def test_gradients_are_clipped_to_the_norm_asked_for_and_small_ones_left_alone():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for parameter, value in zip(parameters, (6.0, 8.0)):
        parameter.grad = torch.tensor([2.0 * value])
    norm, _ = settle_gradients(parameters, 2.0, 1.0)  # the loss scale is divided out first
    assert float(norm) == pytest.approx(10.0)
    assert [float(p.grad) for p in parameters] == pytest.approx([0.6, 0.8])
    settle_gradients(parameters, 1.0, 5.0)
    assert [float(p.grad) for p in parameters] == pytest.approx([0.6, 0.8])


def test_the_loss_scale_saves_small_gradients_from_fp16(dataset, config):
    """The step's own loss and gradient under fp16 autocast, which a CPU has too; 10^8 times smaller than at batch 1."""
    pixels, objective, positions = open_reader(dataset), make_objective(config), np.arange(8)
    images, labels = pixels.at(positions, config.seed)
    denoiser = build_denoiser(config.denoiser, seed=0)
    with torch.no_grad():
        for parameter in denoiser.parameters():  # the paper's networks start at zero: most gradients would be
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    parameters = list(denoiser.parameters())

    def gradient(precision, scale):
        for parameter in parameters:
            parameter.grad = None
        low = configure(config, None, [f"precision={precision}", f"loss_scale={scale}"])
        losses, _ = share_loss(denoiser, objective, images, labels, positions, low, torch.device("cpu"))
        assert losses.dtype == torch.float32
        (losses.sum() * (low.loss_scale * 1e-8)).backward()
        _, nonfinite = settle_gradients(parameters, low.loss_scale, 0.0)
        assert nonfinite == (scale == 1e16) and all(p.grad.dtype == torch.float32 for p in parameters)
        return torch.cat([p.grad.flatten() for p in parameters])

    exact = gradient("fp32", 1)
    scaled, unscaled = ((gradient("fp16", scale) - exact).norm() / exact.norm() for scale in (1e6, 1))
    assert float(scaled) < 0.01 and float(unscaled) > 0.05
    assert bool(torch.isfinite(gradient("fp16", 1e16)).all())  # overflow: counted, and nothing in it is infinite


def _poison(monkeypatch, calls_to_poison):
    """Make the losses of some calls NaN."""
    original, calls = step.round_loss, itertools.count(1)

    def poisoned(*args):
        losses, sigmas = original(*args)
        return losses * (float("nan") if next(calls) in calls_to_poison else 1.0), sigmas

    monkeypatch.setattr(step, "round_loss", poisoned)


REPLACE = ["optimizer.nonfinite=replace"]


def test_a_loss_that_is_not_finite_ends_the_run_before_its_step_and_keeps_the_last_checkpoint(
    dataset, config, tmp_path, monkeypatch
):
    """The message says how to go on, and it does: the run is the same run."""
    claim_run(str(tmp_path), config, dataset)
    states, original = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda adam: (states.append(1), original(adam))[1])
    _poison(monkeypatch, [6])
    with pytest.raises(Diverged, match=r"the step to 144 images is not finite.*optimizer.nonfinite=replace"):
        train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    assert len(states) == 5 and checkpoint_store(str(tmp_path)).committed() == [96]
    assert [row["nimg"] for row in read_metrics(str(tmp_path))] == [48, 96]
    config = configure(config, None, REPLACE)
    claim_run(str(tmp_path), config, dataset)
    _poison(monkeypatch, [2])  # the sixth again: the run goes on from the fourth
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    assert [row["nonfinite"] for row in read_metrics(str(tmp_path))] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("at_tick", [True, False])
def test_a_device_that_is_not_waited_for_keeps_nothing_of_what_is_not_finite(config, at_tick):
    """On a GPU it is seen before a tick is written, and before a checkpoint that is wished for between ticks."""
    taken = TrainingStep(config, Place(), TrainingState(config, torch.device("cpu")))
    taken.tally.add_step(torch.tensor(1.0), torch.tensor(0.0))
    taken.refuse_nonfinite(at_tick)
    taken.tally.add_step(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(Diverged, match="1 of the last 2 steps"):
        taken.refuse_nonfinite(at_tick)


def test_with_replace_losses_that_are_mostly_not_finite_end_the_run(dataset, config, tmp_path, monkeypatch):
    config = configure(config, None, REPLACE)
    claim_run(str(tmp_path), config, dataset)
    _poison(monkeypatch, range(7, 99))
    with pytest.raises(Diverged, match=r"before 192 images is not finite \(2 of the last 2 steps\)"):
        train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    assert checkpoint_store(str(tmp_path)).committed() == [96]


def test_with_replace_a_single_loss_that_is_not_finite_is_counted_and_outlived(dataset, config, tmp_path, monkeypatch):
    config = configure(config, None, REPLACE)
    claim_run(str(tmp_path), config, dataset)
    _poison(monkeypatch, [6])
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    rows = read_metrics(str(tmp_path))
    assert [row["nonfinite"] for row in rows] == [0, 0, 1, 0, 0] and all(math.isfinite(row["loss"]) for row in rows)


def test_another_run_in_the_folder_is_refused_with_the_difference_and_fresh_starts_over(dataset, config, tmp_path):
    claim_run(str(tmp_path), config, dataset)
    other = configure(config, None, ["seed=1"])
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        claim_run(str(tmp_path), other, dataset)
    claim_run(str(tmp_path), other, dataset, fresh=True)
    assert json.loads((tmp_path / "run.json").read_text())["fields"]["seed"] == 1


def test_fresh_leaves_nothing_of_the_run_before(dataset, config, tmp_path):
    config = configure(config, None, ["ema.sigma_rels=[0.1]", "ema.snapshot_kimg=0.096"])
    claim_run(str(tmp_path), config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoints", "ema-snapshots", "model"}
    claim_run(str(tmp_path), config, dataset, fresh=True)
    assert list(tmp_path.rglob("*.safetensors")) == [] and read_metrics(str(tmp_path)) == []


def test_a_folder_of_something_else_is_refused(dataset, config, tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match=r"not a run \(found thesis.doc\)"):
        claim_run(str(tmp_path), config, dataset)


def test_more_workers_than_lanes_are_refused(dataset, config, tmp_path):
    with pytest.raises(InputError, match="leaves some of 13 workers without images"):
        train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)), Place(world_size=13))


@pytest.mark.parametrize("kind", ["vp", "ve", "iddpm"])
def test_every_objective_trains_with_every_preconditioning_of_its_name(dataset, config, tmp_path, kind):
    """Also configuration D's cross: EDM preconditioning with the old objective."""
    for number, preconditioning in enumerate((kind, "edm")):
        changes = [f"denoiser.preconditioning.kind={preconditioning}", f"objective.kind={kind}", "total_kimg=0.048"]
        changed = configure(config, None, changes)
        uri = str(tmp_path / str(number))
        claim_run(uri, changed, dataset)
        train(TrainingJob(config=changed, dataset=dataset, run_uri=uri))
        assert math.isfinite(read_metrics(uri)[-1]["loss"])


@pytest.mark.parametrize("told_in", [4, 5, 7])
def test_a_run_that_is_told_to_stop_saves_at_once_and_resumes_bit_for_bit(dataset, config, tmp_path, told_in):
    """At a tick or in the middle of one, before or after a snapshot's turn: neither ticks nor snapshots are missed."""
    config = configure(config, None, ["ema.sigma_rels=[0.1]", "ema.snapshot_kimg=0.160"])
    calm, told = str(tmp_path / "calm"), str(tmp_path / "told")
    for uri in (calm, told):
        claim_run(uri, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=calm))
    answers = iter([Signal.NONE] * (told_in - 1) + [Signal.STOP])
    with pytest.raises(Stopped, match=f"stopped at {24 * told_in} images"):
        train(TrainingJob(config=config, dataset=dataset, run_uri=told), ask=lambda: next(answers))
    assert checkpoint_store(told).committed() == sorted({96, 24 * told_in})
    train(TrainingJob(config=config, dataset=dataset, run_uri=told))
    assert open_model(model_uri(told)).weights == open_model(model_uri(calm)).weights
    assert _timeless(read_metrics(told)) == _timeless(read_metrics(calm))
    snapshots = sorted(path.name for path in Path(calm).glob("ema-snapshots/*"))
    assert sorted(path.name for path in Path(told).glob("ema-snapshots/*")) == snapshots and len(snapshots) == 2


def test_a_machine_that_will_be_taken_away_gets_its_checkpoint_at_once_and_at_ticks_while_it_lasts(
    dataset, config, tmp_path
):
    """Ticks every 2 steps of 24 images, checkpoints every 4: told in step 3, withdrawn after step 7."""
    claim_run(str(tmp_path), config, dataset)
    steps = iter(range(1, 11))
    config = configure(config, None, ["keep_checkpoints=9"])
    train(
        TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)),
        ask=lambda: Signal.SAVE if 3 <= next(steps) <= 7 else Signal.NONE,
    )
    assert checkpoint_store(str(tmp_path)).committed() == [72, 96, 144, 192, 240]


@pytest.mark.parametrize("failures", [2, 99])
def test_storage_that_fails_twice_does_not_stop_the_run_and_one_that_fails_for_good_does(
    dataset, config, tmp_path, monkeypatch, failures
):
    """Without losing the checkpoint before."""
    claim_run(str(tmp_path), config, dataset)
    monkeypatch.setattr(checkpoints, "FIRST_WAIT_S", 0.01)
    original, calls = CheckpointStore.save, 0

    def save(self, images_seen, tensors, state):
        nonlocal calls
        calls += images_seen == 192
        if images_seen == 192 and calls <= failures:
            raise OSError(28, "No space left on device")
        return original(self, images_seen, tensors, state)

    monkeypatch.setattr(CheckpointStore, "save", save)
    if failures == 2:
        train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
        assert calls == 3
    else:
        with pytest.raises(OSError, match="No space left"):
            train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
        assert checkpoint_store(str(tmp_path)).committed() == [96]


class _Own(torch.nn.Module):
    """A network of one's own: one convolution that is told the class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.label_dim = classes
        self.convolution = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.shift = torch.nn.Linear(classes, 1)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        return self.convolution(x) + self.shift(class_labels)[:, :, None, None] + 0 * noise_labels[:, None, None, None]


def test_a_network_of_ones_own_is_trained_in_a_copy_and_resumes_bit_for_bit(dataset, config, tmp_path, monkeypatch):
    """And grids are drawn from it."""
    monkeypatch.setattr(grid, "SHARE", 1e6)  # of milliseconds
    torch.manual_seed(3)
    own = _Own(len(dataset.class_names))
    sizes = OwnNetwork(img_resolution=8, img_channels=1, label_dim=own.label_dim)
    config = dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, network=sizes))
    before = {name: value.clone() for name, value in own.state_dict().items()}

    def run(uri, **more):
        claim_run(uri, config, dataset)
        train(TrainingJob(config=config, dataset=dataset, run_uri=uri, network=own, snapshot_kimg=0.24), **more)

    calm, told = str(tmp_path / "calm"), str(tmp_path / "told")
    run(calm)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    answers = iter([Signal.NONE] * 4 + [Signal.STOP])
    with pytest.raises(Stopped):
        run(told, ask=lambda: next(answers))
    run(told)
    one, other = (safetensors.torch.load_file(Path(model_uri(uri)) / "model.safetensors") for uri in (calm, told))
    assert one.keys() == {f"model.{name}" for name in before}
    for name, value in before.items():
        trained = one[f"model.{name}"]
        assert torch.equal(trained, other[f"model.{name}"]) and not torch.equal(trained, value)
    assert read_metrics(calm)[-1]["loss"] == read_metrics(told)[-1]["loss"]
    assert Path(grid_uri(calm, 240)).read_bytes() == Path(grid_uri(told, 240)).read_bytes()
