"""The bits of a run do not depend on how many cores the machine has, or on who started the process."""

from __future__ import annotations

import pytest
import torch

from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import claim_run, model_uri
from edm_ray.training.step import TrainingStep

CLOCKS = {"images_per_s", "data_wait", "checkpoint_stall_s", "memory_mib"}


@pytest.fixture
def cores():
    """Sets what torch would take on a machine with so many cores."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_torch_of_any_number_of_cores_gives_the_same_bits_and_keeps_its_threads(digits_dir, tmp_path, cores):
    dataset, results = open_dataset(str(digits_dir / "heldout")), []
    for count in (1, 2, 3):
        cores(count)
        uri = str(tmp_path / str(count))
        claim_run(uri, tiny(dataset.shape), dataset)
        train(TrainingJob(config=tiny(dataset.shape), dataset=dataset, run_uri=uri))
        rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_metrics(uri)]
        results.append((open_model(model_uri(uri)).weights, rows))
        assert torch.get_num_threads() == count
    assert results[0] == results[1] == results[2]


def test_a_worker_takes_the_threads_it_is_told_to(digits_dir, tmp_path, monkeypatch, cores):
    dataset, seen, original = open_dataset(str(digits_dir / "heldout")), set(), TrainingStep.take

    def step(self, pixels):
        seen.add(torch.get_num_threads())
        return original(self, pixels)

    monkeypatch.setattr(TrainingStep, "take", step)
    cores(1)
    config = configure(tiny(dataset.shape), None, ["threads=2", "total_kimg=0.048"])
    claim_run(str(tmp_path), config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(tmp_path)))
    assert seen == {2}
    # A longer run may go on with another number: it changes rounding only, as micro_batch does.
    claim_run(str(tmp_path), configure(config, None, ["threads=3"]), dataset)
    with pytest.raises(InputError, match="threads=0 is not allowed: at least 1"):
        configure(config, None, ["threads=0"])
