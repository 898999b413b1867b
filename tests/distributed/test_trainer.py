from __future__ import annotations

import subprocess
import sys

import pytest
from ray.train import ScalingConfig

from edm_ray.distributed.trainer import Trainer


@pytest.mark.parametrize("datasets", [{}, {"train": "a data set"}])
def test_a_process_for_data_sets_is_started_only_where_there_are_some(datasets):
    """By name, so that a Ray that calls it otherwise fails here and does not start it unseen."""
    trainer = Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1), datasets=datasets)
    names = [type(each).__name__ for each in trainer._create_default_callbacks()]
    assert "BackendSetupCallback" in names
    assert ("DatasetsCallback" in names) == bool(datasets)


def test_a_worker_of_a_training_imports_nothing_that_it_has_no_use_for():
    """Imports are most of the time from a kill to the next step (docs/training.md)."""
    heavy = {"scipy.stats", "matplotlib", "sklearn", "optuna", "torchvision", "rich", "tyro", "jinja2"}
    code = f"import sys, edm_ray.distributed.train; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
