"""How far a training is, step by step, across kills: called by Ray Train in its controller and workers (`goodput`).

Lines of the file that MARKS_VARIABLE names, as `marks` writes them; rank 0's steps carry the images seen.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback

from benchmarks.marks import MARKS_VARIABLE, mark


class Progress(ControllerCallback, WorkerCallback):
    """Named in RAY_TRAIN_CALLBACKS."""

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if type(previous_state) is not type(current_state):
            mark(f"controller: {type(current_state).__name__}")

    def after_init_train_context(self) -> None:
        import ray.train

        mark("worker context")
        if ray.train.get_context().get_world_rank() == 0:
            note_steps()


def note_steps() -> None:
    """From now on in this process: a line after each step."""
    from edm_ray.training.step import TrainingStep

    original, pid = TrainingStep.take, os.getpid()
    file = Path(os.environ[MARKS_VARIABLE]).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 (to the end)

    @functools.wraps(original)
    def take(self: TrainingStep, *args: Any) -> None:
        original(self, *args)
        row = {"name": "step", "moment": time.time(), "pid": pid, "nimg": self.state.images_seen}
        file.write(json.dumps(row) + "\n")

    TrainingStep.take = take  # type: ignore[method-assign]
