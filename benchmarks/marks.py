"""When each thing happened between a command and its first step, in every process of a training.

Ray Train calls `Marks` (named in RAY_TRAIN_CALLBACKS) in its controller and in every worker; the driver of
`training_start.py` calls `mark` itself. All of them append lines to the file that MARKS_VARIABLE names.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback, WorkerGroupCallback

from benchmarks.processes import process_began

MARKS_VARIABLE = "EDM_RAY_BENCHMARK_MARKS"


def mark(name: str, moment: float | None = None) -> None:
    """One line: what, when, and in which process."""
    line = json.dumps({"name": name, "moment": time.time() if moment is None else moment, "pid": os.getpid()})
    with Path(os.environ[MARKS_VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_marks(path: Path) -> list[dict[str, Any]]:
    """All marks, in the order of time."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(rows, key=lambda row: row["moment"])


def marked(owner: Any, name: str, what: str, once: bool = False) -> None:
    """From now on, calls of owner.name are marked before ("... begins") and after ("... ends")."""
    original, calls = getattr(owner, name), [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if once and calls[0] > 1:
            return original(*args, **kwargs)
        mark(f"{what} begins")
        try:
            return original(*args, **kwargs)
        finally:
            mark(f"{what} ends")

    setattr(owner, name, call)


class Marks(ControllerCallback, WorkerGroupCallback, WorkerCallback):
    """What Ray Train tells of its own progress."""

    def after_controller_start(self, train_run_context: Any) -> None:
        mark("controller process", process_began())
        mark("controller started")

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if type(previous_state) is not type(current_state):
            mark(f"controller: {type(current_state).__name__}")

    @contextlib.contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        mark("group begins")
        yield

    def after_worker_group_start(self, worker_group: Any) -> None:
        mark("workers initialised")

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        mark("train function launched")

    @contextlib.contextmanager
    def on_worker_group_shutdown(self) -> Iterator[None]:
        mark("group's end begins")
        yield
        mark("group's end ends")

    def after_init_train_context(self) -> None:
        mark("worker process", process_began())
        mark("worker context")
        mark_worker()


def mark_worker() -> None:
    """In a worker, before torch.distributed is set up and before the train function is read."""
    import torch.distributed as dist
    from ray.train.v2._internal.util import ObjectRefWrapper

    mark("torch imported")
    marked(dist, "init_process_group", "process group")
    original: Callable[..., Any] = ObjectRefWrapper.get

    def get(self: Any) -> Any:
        mark("train function read begins")
        function = original(self)
        mark("train function read ends")
        from edm_ray.training import loop

        mark_loop(loop)
        return function

    ObjectRefWrapper.get = get


def mark_loop(loop: Any) -> None:
    """The loop's own parts of a start."""
    marked(loop, "open_reader", "reader")
    marked(loop, "TrainingState", "network")
    marked(loop, "agreed_checkpoint", "checkpoint read")
    marked(loop.TrainingStep, "take", "first step", once=True)
