"""``--reader ray-data``: what it gives, what it cannot do, and how it fails."""

from __future__ import annotations

import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.config.identity import identity_fields
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.distributed import ray_data
from edm_ray.distributed.ray_data import RayDataReader, decode_visits, require_room
from edm_ray.errors import InputError
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import claim_run
from tests.data.readers import make_dataset, shard_path


@pytest.fixture
def made(tmp_path):
    """(data set of 5 shards, images, labels, configuration)"""
    dataset, images, labels = make_dataset(tmp_path / "d")
    return dataset, images, labels, configure(tiny(dataset.shape), None, ["reader=ray-data"])


def test_every_epoch_visits_every_shard_once_in_an_order_of_its_own(made):
    dataset, images, labels, _ = made
    epochs = []
    for epoch in (0, 1, 7):
        rows = decode_visits(dataset, 0, 5 * epoch, {"id": np.arange(5)})
        place = np.lexsort(rows["image"].reshape(40, -1).T)
        expected = np.lexsort(images.reshape(40, -1).T)
        assert np.array_equal(rows["image"][place], images[expected])
        assert np.array_equal(rows["label"][place], labels[expected])
        epochs.append(rows["image"].tobytes())
    assert len(set(epochs)) == 3


def test_a_worker_says_what_is_wrong_with_a_shard_that_a_task_could_not_read(made):
    dataset, *_, config = made
    path = shard_path(dataset, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    rows = decode_visits(dataset, 0, 0, {"id": np.arange(5)})
    assert len(rows["label"]) == 33 and sorted(rows["label"])[0] == -4
    with pytest.raises(InputError, match=r"train-00003-of-00005\.parquet: .*truncated or replaced"):
        RayDataReader(dataset, config, iter([rows])).at(np.arange(4, dtype=np.int64), 0)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"train-00003-of-00005\.parquet can be read on the node of a training worker"):
        RayDataReader(dataset, config, iter([rows])).at(np.arange(4, dtype=np.int64), 0)


@pytest.mark.parametrize("xflip", [False, True])
def test_a_worker_gets_what_comes_in_parts_of_any_size(made, xflip):
    dataset, images, labels, config = made
    config = configure(config, None, [f"xflip={str(xflip).lower()}"])
    rows = iter([{"image": images[a:b].copy(), "label": labels[a:b]} for a, b in ((0, 7), (7, 8), (8, 40))])
    reader, flipped = RayDataReader(dataset, config, rows), 0
    for first, count in ((0, 3), (3, 12), (15, 0), (15, 20)):
        positions = np.arange(1000 + first, 1000 + first + count, dtype=np.int64)
        got, told = (part.numpy() for part in reader.at(positions, 0))
        part = images[first : first + count]
        mirrored = (got != part).any(axis=(1, 2, 3))
        assert np.array_equal(np.where(mirrored[:, None, None, None], part[..., ::-1], part), got)
        assert np.array_equal(told, labels[first : first + count])
        flipped += mirrored.sum()
    assert 8 < flipped < 27 if xflip else flipped == 0
    with pytest.raises(InputError, match="Ray Data has ended before the run"):
        reader.at(np.arange(6, dtype=np.int64), 0)


def test_without_a_cpu_to_decode_on_it_is_refused_instead_of_waiting_for_ever(monkeypatch):
    monkeypatch.setattr(ray_data, "nodes_there", lambda: [{"CPU": 2.0}, {"CPU": 2.0}])
    require_room(3, 1.0)
    with pytest.raises(InputError, match="5 in all; the cluster has 4"):
        require_room(4, 1.0)
    require_room(99, 0.0)


def test_it_is_another_run_and_the_default_is_the_run_that_it_was(made):
    dataset, *_, config = made
    assert identity_fields(config, dataset.hash)["reader"] == "ray-data"
    assert "reader" not in identity_fields(configure(config, None, ["reader=cache"]), dataset.hash)


def test_what_cannot_go_together_is_refused(made, tmp_path, capsys):
    dataset, *_, config = made
    arguments = ["train", "--data", dataset.uri, "--out", str(tmp_path / "run"), "--preset", "tiny"]
    assert main([*arguments, "--no-ray", "--reader", "ray-data"]) == 2
    assert "--no-ray trains without Ray, and --reader ray-data is Ray's" in capsys.readouterr().err
    for setting in ("order=blocks", "on_damage=skip"):
        assert main([*arguments, "--reader", "ray-data", "--set", setting]) == 2
        assert "with reader=ray-data" in capsys.readouterr().err
    with pytest.raises(InputError, match="trains with Ray only"):
        train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path / "run")))


SETTINGS = ["batch_size=25", "tick_kimg=0.1", "checkpoint_kimg=0.1"]


def _command(dataset, run: str, total_kimg: float) -> list[str]:
    arguments = ["train", "--data", dataset.uri, "--out", run, "--preset", "tiny", "--reader", "ray-data"]
    return [*arguments, "--workers", "2", "--set", f"total_kimg={total_kimg}", *SETTINGS]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_two_workers_with_unequal_shares_resume_a_run(made, tmp_path):
    """Batches of 25 on two workers: their epochs end in different steps, and nobody waits for the other. What they
    resume was trained here, on rows as Ray Data's tasks decode them."""
    dataset, *_, config = made
    run, config = str(tmp_path / "run"), configure(config, None, ["total_kimg=0.2", *SETTINGS])
    claim_run(run, config, dataset)
    visits = iter([decode_visits(dataset, config.seed, 0, {"id": np.arange(30)})])
    job = TrainingJob(config=config, dataset=dataset, run_uri=run)
    train(job, served=lambda: RayDataReader(dataset, config, visits))
    assert main(_command(dataset, run, 0.3)) == 0
    assert [row["nimg"] for row in read_metrics(run)] == [100, 200, 300]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_with_unequal_shares_train_and_the_same_command_resumes(made, tmp_path):
    dataset, run = made[0], str(tmp_path / "run")
    for total in (0.2, 0.3):
        assert main(_command(dataset, run, total)) == 0
    assert [row["nimg"] for row in read_metrics(run)] == [100, 200, 300]


@pytest.mark.ray
@pytest.mark.fault
@pytest.mark.usefixtures("ray_session")
def test_a_damaged_shard_ends_training_and_is_named(made, tmp_path, capsys):
    dataset = made[0]
    path = shard_path(dataset, 3)
    path.write_bytes(path.read_bytes()[:-9])
    arguments = ["train", "--data", dataset.uri, "--out", str(tmp_path / "run"), "--preset", "tiny"]
    assert main([*arguments, "--reader", "ray-data", "--max-failures", "0"]) == 2
    text = capsys.readouterr().err
    assert "train-00003-of-00005.parquet" in text and "truncated or replaced" in text
