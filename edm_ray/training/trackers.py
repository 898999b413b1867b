"""Where metrics may go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow. Each is imported when it is
asked for.

A tracker is given numbers under names at images seen, and a dictionary of its own that lives as long as the run: in it
it keeps what it needs to go on with the same remote run.
"""

from __future__ import annotations

import importlib
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from edm_ray.errors import InputError, nearest
from edm_ray.storage import uris

PROJECT = "edm_ray"
"""Project or experiment where none is named."""


class Tracker(Protocol):
    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers at this many images seen; called in ascending order, once for each."""

    def close(self, done: bool) -> None:
        """Nothing more comes now; ``done``: the run is at its end."""


@dataclass
class Subject:
    """The run that is tracked."""

    run_uri: str
    settings: dict[str, Any]
    """Flat ``a.b.c -> value`` table."""
    memory: dict[str, Any] = field(default_factory=dict)
    """Of this tracker, in this run."""

    @property
    def name(self) -> str:
        return self.run_uri.rstrip("/").rsplit("/", 1)[-1]


class _TensorBoard:
    """Event files below the run's directory, or where it is said: the same folder for the same run."""

    def __init__(self, subject: Subject, where: str) -> None:
        writer = importlib.import_module("tensorboardX")
        # Files are named by the second otherwise, and one written over another of that second.
        own = f".{uuid.uuid4().hex[:8]}"
        logdir = where or uris.join(subject.run_uri, "tensorboard")
        self.writer = writer.SummaryWriter(logdir=logdir, filename_suffix=own)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, done: bool) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, subject: Subject, where: str) -> None:
        wandb = importlib.import_module("wandb")
        own = subject.memory.setdefault("id", uuid.uuid4().hex[:16])
        self.run = wandb.init(
            project=where or PROJECT,
            id=own,
            name=subject.name,
            resume="allow",
            config=subject.settings,
            dir=tempfile.gettempdir(),
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)


class _Mlflow:
    def __init__(self, subject: Subject, where: str) -> None:
        mlflow = importlib.import_module("mlflow")
        self.metric = importlib.import_module("mlflow.entities").Metric
        self.client = mlflow.MlflowClient()
        if "id" not in subject.memory:
            named = self.client.get_experiment_by_name(where or PROJECT)
            experiment = named.experiment_id if named else self.client.create_experiment(where or PROJECT)
            own = self.client.create_run(experiment, run_name=subject.name).info.run_id
            subject.memory["id"] = own
            for key, value in subject.settings.items():
                self.client.log_param(own, key, value)
        self.id = subject.memory["id"]
        self.client.update_run(self.id, status="RUNNING")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        now = round(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[self.metric(key, value, now, step) for key, value in numbers.items()])

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if done else "KILLED")


@dataclass(frozen=True)
class Kind:
    open: Callable[[Subject, str], Tracker]
    module: str
    install: str


TRACKERS = {
    "tensorboard": Kind(_TensorBoard, "tensorboardX", "pip install 'edm_ray[tensorboard]'"),
    "wandb": Kind(_Wandb, "wandb", "pip install 'edm_ray[wandb]'"),
    "mlflow": Kind(_Mlflow, "mlflow", "pip install 'edm_ray[mlflow]'"),
}


def parse_trackers(texts: list[str], run_uri: str) -> dict[str, str]:
    """ "NAME" or "NAME=WHERE" -> {name: where}, "" for where nothing was said.

    Raises InputError for names that are unknown, packages that are missing, and a place that cannot be written.
    """
    chosen: dict[str, str] = {}
    for text in texts:
        name, _, where = text.partition("=")
        if name not in TRACKERS:
            raise InputError(f"--track {text}: unknown{nearest(name, TRACKERS)}; there are: {', '.join(TRACKERS)}")
        try:
            importlib.import_module(TRACKERS[name].module)
        except ImportError as error:
            raise InputError(
                f"--track {name}: the package {TRACKERS[name].module} is not installed ({error}); "
                f"{TRACKERS[name].install}"
            ) from error
        if name == "tensorboard" and uris.is_remote(where or run_uri):
            raise InputError(
                f"--track {text}: TensorBoard's files are appended to, which S3 cannot do; "
                "give a local folder: --track tensorboard=FOLDER"
            )
        chosen[name] = where
    return chosen
