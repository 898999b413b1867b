"""Checkpoints that storage takes long for: what training waits for, and what it does not."""

from __future__ import annotations

import threading

import pytest

from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.training.checkpoints import BackgroundWriter
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import claim_run


def test_one_call_is_written_one_waits_and_a_third_makes_no_copy_before_there_is_room():
    writer, events, gates = BackgroundWriter(), [], [threading.Event() for _ in range(3)]

    def copy(number):
        events.append(f"copy {number}")

        def write():
            assert gates[number].wait(60)
            events.append(f"written {number}")

        return write

    writer.submit(lambda: copy(0))
    writer.submit(lambda: copy(1))  # returns, though nothing is written yet
    assert events == ["copy 0", "copy 1"]
    third = threading.Thread(target=lambda: writer.submit(lambda: copy(2)), daemon=True)
    third.start()
    third.join(0.2)
    assert third.is_alive() and events == ["copy 0", "copy 1"]
    gates[0].set()
    third.join(60)
    assert not third.is_alive() and events == ["copy 0", "copy 1", "written 0", "copy 2"]
    for gate in gates:
        gate.set()
    writer.close()
    assert events[4:] == ["written 1", "written 2"]


def test_nothing_is_written_after_a_failure_and_the_next_call_raises_it():
    writer, gate, written = BackgroundWriter(), threading.Event(), []

    def fail():
        assert gate.wait(60)
        raise ValueError("no")

    writer.submit(lambda: fail)
    writer.submit(lambda: lambda: written.append("second"))
    gate.set()
    with pytest.raises(ValueError, match="no"):
        writer.submit(lambda: lambda: written.append("third"))
    writer.close()
    assert written == []


def test_training_continues_to_the_next_checkpoint_while_one_is_uploaded(digits_dir, tmp_path, monkeypatch):
    """The first upload takes until the tick after the second checkpoint: without room for one more it would hang."""
    dataset, gate, saved = open_dataset(str(digits_dir / "heldout")), threading.Event(), []
    config = configure(tiny(dataset.shape), None, ["total_kimg=0.24", "tick_kimg=0.048", "checkpoint_kimg=0.096"])
    original = CheckpointStore.save

    def save(self, images_seen, tensors, state):
        assert gate.wait(60)
        original(self, images_seen, tensors, state)
        saved.append((images_seen, float(tensors["tally"]["sums"].abs().sum())))

    def on_tick(row):
        if row["nimg"] == 240:  # the checkpoints at 96 and 192 have been asked for
            assert saved == []
            gate.set()

    monkeypatch.setattr(CheckpointStore, "save", save)
    claim_run(str(tmp_path), config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)), on_tick=on_tick)
    assert [images for images, _ in saved] == [96, 192, 240]
    assert [row["nimg"] for row in read_metrics(str(tmp_path))] == [48, 96, 144, 192, 240]
