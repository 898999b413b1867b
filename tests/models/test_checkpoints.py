from __future__ import annotations

import logging

import pytest
import torch

from edm_ray.config.presets import DataShape, tiny
from edm_ray.errors import InputError, IntegrityError
from edm_ray.models import load_model, open_model, save_model
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.networks.build import build_denoiser

CONFIG = tiny(DataShape(resolution=8, channels=1, num_classes=10)).denoiser


def _save(store, images_seen, value=1.0):
    store.save(images_seen, {"model": {"w": torch.full((3,), value)}}, {"images_seen": images_seen})


def test_the_newest_whole_checkpoint_is_the_latest(tmp_path):
    store = CheckpointStore(str(tmp_path))
    assert store.latest() is None
    _save(store, 100, 1.0)
    _save(store, 200, 2.0)
    (tmp_path / "nimg-000000000300").mkdir()  # a dead writer's leftover, without a manifest
    latest = store.latest()
    assert latest.images_seen == 200 and torch.equal(latest.tensors["model"]["w"], torch.full((3,), 2.0))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, damage):
    store = CheckpointStore(str(tmp_path))
    _save(store, 100)
    _save(store, 200)
    path = tmp_path / "nimg-000000000200" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content[:-4]) if damage == "truncate" else bytes(content))
    if damage == "delete":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert store.latest().images_seen == 100
    assert "nimg-000000000200" in caplog.text


def test_nothing_whole_left_is_an_error_and_not_a_fresh_start(tmp_path):
    store = CheckpointStore(str(tmp_path))
    _save(store, 100)
    (tmp_path / "nimg-000000000100" / "state.json").write_text("{}")
    with pytest.raises(IntegrityError, match="--fresh"):
        store.latest()


def test_retention_keeps_the_newest_and_never_the_half_written(tmp_path):
    store = CheckpointStore(str(tmp_path), keep=2)
    for images_seen in (1, 2, 3, 4):
        _save(store, images_seen)
    assert store.committed() == [3, 4]


def test_retention_counts_whole_checkpoints_only(tmp_path, caplog):
    """300 and 400 were damaged after they had been written: of 200, the last good one, nothing may be deleted until
    three newer ones are whole."""
    store = CheckpointStore(str(tmp_path), keep=3)
    for images_seen in (100, 200, 300, 400):
        _save(store, images_seen)
    assert store.committed() == [200, 300, 400]
    for images_seen, name in ((300, "model.safetensors"), (400, "manifest.json")):
        (tmp_path / f"nimg-{images_seen:012d}" / name).write_bytes(b"{}")
    again = CheckpointStore(str(tmp_path), keep=3)
    with caplog.at_level(logging.WARNING):
        for images_seen in (500, 600):
            _save(again, images_seen)
            assert 200 in again.committed()
    assert "nimg-000000000300" in caplog.text and "one more is kept instead" in caplog.text
    _save(again, 700)
    assert again.committed() == [500, 600, 700]


def test_a_model_directory_gives_back_the_denoiser_and_the_same_bytes(tmp_path):
    denoiser = build_denoiser(CONFIG, seed=1)
    for name in ("a", "b"):
        save_model(str(tmp_path / name), CONFIG, denoiser.state_dict(), {"images_seen": 5})
    loaded = load_model(str(tmp_path / "a"))
    for name, tensor in denoiser.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)
    for file in ("model.safetensors", "config.json", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert open_model(str(tmp_path / "a")).hash == open_model(str(tmp_path / "b")).hash


def test_a_missing_or_wrong_tensor_is_named(tmp_path):
    state = build_denoiser(CONFIG).state_dict()
    name = next(iter(state))
    form = f"float32 {tuple(state[name].shape)}"
    for folder, changed, says in (
        ("short", {k: v for k, v in state.items() if k != name}, f"{name!r}: expected {form}, it is missing (1 in"),
        ("wide", {**state, name: torch.zeros(7, 7)}, f"{name!r}: expected {form}, found float32 (7, 7)"),
        ("low", {**state, name: state[name].half()}, f"{name!r}: expected {form}, found float16"),
        ("more", {**state, "other": torch.zeros(2)}, "'other' float32 (2,) is not part of the network (1 in all)"),
    ):
        save_model(str(tmp_path / folder), CONFIG, changed, {})
        with pytest.raises(IntegrityError) as error:
            load_model(str(tmp_path / folder))
        assert str(error.value).startswith(f"{tmp_path / folder}: tensor {says}")


def test_a_run_given_for_a_model_is_told_where_the_model_is(tmp_path):
    save_model(str(tmp_path / "run" / "model"), CONFIG, build_denoiser(CONFIG).state_dict(), {})
    with pytest.raises(InputError, match=r"is a training run, not a model; give .*run/model"):
        load_model(str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"no model itself; it holds .*run/model: give one"):
        load_model(str(tmp_path))
