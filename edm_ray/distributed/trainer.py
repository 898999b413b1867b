"""Ray Train's trainer without a process that it starts for nothing.

With every group of workers Ray Train 2.60 starts a DatasetManager, also where no Ray Data set is read. That process
imports what a worker imports, at the moment when the workers do: after a kill, one import in three.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback


class Trainer(TorchTrainer):
    """`TorchTrainer`; no DatasetManager where ``datasets`` is empty."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if self.datasets or not isinstance(each, DatasetsCallback)]
