"""Where metrics may go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow. Each is imported when it is
asked for, and given rows by a thread: nothing waits for it, and none can stop a run.

RUN/trackers.json keeps the ids of the services' runs, so that a resumed run resumes them in the service's own way. A
row that could not be delivered is missing there; all are in ``metrics.jsonl``.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from edm_ray.errors import InputError, nearest
from edm_ray.storage import uris
from edm_ray.storage.versioned import read_json, write_json
from edm_ray.training.metrics import SIGMA_EDGES

logger = logging.getLogger(__name__)
PROJECT = "edm_ray"
"""Project or experiment where none is named."""
STATE_FILE = "trackers.json"
CLOSE_SECONDS = 30.0
"""How long the end of a command waits for trackers that are behind."""
_NOT_TRACKED = ("nimg", "total", "loss_by_sigma")
Row = dict[str, Any]


class Tracker(Protocol):
    remote_id: str
    """Given back to it as Subject.remote_id when the run is resumed."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers at this many images seen; called in ascending order."""

    def close(self, done: bool) -> None:
        """Nothing more comes now; ``done``: the run is at its end."""


@dataclass
class Subject:
    """The run that is tracked."""

    run_uri: str
    settings: dict[str, Any]
    """Flat ``a.b.c -> value`` table."""
    remote_id: str | None = None
    """Of the service's run that this run has written to before."""
    last: int = -1
    """Images seen in the last row that the service has."""

    @property
    def name(self) -> str:
        return self.run_uri.rstrip("/").rsplit("/", 1)[-1]


class _TensorBoard:
    """Event files below the run's directory, or where it is said. Resumes by purge_step: what a killed command wrote of
    later steps is not shown."""

    def __init__(self, subject: Subject, where: str) -> None:
        writer = importlib.import_module("tensorboardX")
        self.remote_id = "files"
        # Files are named by the second otherwise, and one written over another of that second.
        suffix, purge = f".{uuid.uuid4().hex[:8]}", subject.last + 1 if subject.remote_id else None
        logdir = where or uris.join(subject.run_uri, "tensorboard")
        self.writer = writer.SummaryWriter(logdir=logdir, filename_suffix=suffix, purge_step=purge)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, done: bool) -> None:
        self.writer.close()


class _Wandb:
    """Resumes by id and resume="allow"; W&B itself ignores steps that it has."""

    def __init__(self, subject: Subject, where: str) -> None:
        wandb = importlib.import_module("wandb")
        self.remote_id = subject.remote_id or uuid.uuid4().hex[:16]
        self.run = wandb.init(
            project=where or PROJECT,
            id=self.remote_id,
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
    """Resumes by run id."""

    def __init__(self, subject: Subject, where: str) -> None:
        mlflow = importlib.import_module("mlflow")
        self.metric = importlib.import_module("mlflow.entities").Metric
        self.client = mlflow.MlflowClient()
        self.remote_id = subject.remote_id or self._create(subject, where or PROJECT)
        self.client.update_run(self.remote_id, status="RUNNING")

    def _create(self, subject: Subject, experiment: str) -> str:
        named = self.client.get_experiment_by_name(experiment)
        number = named.experiment_id if named else self.client.create_experiment(experiment)
        remote_id: str = self.client.create_run(number, run_name=subject.name).info.run_id
        for key, value in subject.settings.items():
            self.client.log_param(remote_id, key, value)
        return remote_id

    def log(self, step: int, numbers: dict[str, float]) -> None:
        now = round(time.time() * 1000)
        metrics = [self.metric(key, value, now, step) for key, value in numbers.items()]
        self.client.log_batch(self.remote_id, metrics=metrics)

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.remote_id, "FINISHED" if done else "KILLED")


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


def numbers_of(row: Row) -> dict[str, float]:
    """A row as flat finite numbers: ``loss_by_sigma`` becomes a number for each bin that had images."""
    flat = {key: value for key, value in row.items() if key not in _NOT_TRACKED}
    edges = [f"{edge:g}" for edge in SIGMA_EDGES]
    names = [f"below-{edges[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), f"from-{edges[-1]}"]
    flat |= {f"loss_by_sigma/{name}": loss for name, loss in zip(names, row.get("loss_by_sigma", ()))}
    return {key: float(value) for key, value in flat.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def forget_trackers(run_uri: str) -> None:
    """The run begins anew: the services' runs of the one before are not resumed."""
    if uris.exists(path := uris.join(run_uri, STATE_FILE)):
        write_json(path, {"ids": {}})


class Tracking:
    """Trackers of one run. chosen: name -> where, from `parse_trackers`; rows: those that the run has. A tracker that
    is new to the run gets them too; `add` takes the next ones and returns at once."""

    def __init__(self, chosen: dict[str, str], run_uri: str, settings: dict[str, Any], rows: list[Row]) -> None:
        self.state_uri = uris.join(run_uri, STATE_FILE)
        self.ids: dict[str, str] = {}
        if chosen and uris.exists(self.state_uri):
            self.ids = read_json(self.state_uri, "delete that file, and the trackers begin runs of their own").get(
                "ids", {}
            )
        self.last = rows[-1]["nimg"] if rows else -1
        self.lines = []
        for name, where in chosen.items():
            known = self.ids.get(name)
            subject = Subject(run_uri, settings, known, self.last if known else -1)
            self.lines.append(_Line(name, where, subject, self._remember))
        self.rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self.done = False
        self.thread = threading.Thread(target=self._work, args=(list(rows),), name="trackers", daemon=True)
        if self.lines:
            self.thread.start()

    def add(self, row: Row) -> None:
        """A resumed run writes the rows after its checkpoint again: those are not sent again."""
        if row["nimg"] > self.last:
            self.last = row["nimg"]
            self.rows.put(row)

    def _work(self, earlier: list[Row]) -> None:
        for row in itertools.chain(earlier, iter(self.rows.get, None)):
            for line in self.lines:
                line.send(row)
        for line in self.lines:
            line.close(self.done)

    def _remember(self, name: str, remote_id: str) -> None:
        self.ids[name] = remote_id
        write_json(self.state_uri, {"ids": self.ids})

    def close(self, done: bool) -> list[str]:
        """Send what waits, for at most CLOSE_SECONDS; what became of each tracker, in words."""
        if not self.lines:
            return []
        self.done = done
        self.rows.put(None)
        self.thread.join(CLOSE_SECONDS)
        late = f"; did not end within {CLOSE_SECONDS:.0f} s" if self.thread.is_alive() else ""
        return [line.summary() + late for line in self.lines]


class _Line:
    """One tracker, how much it got, and what went wrong."""

    def __init__(self, name: str, where: str, subject: Subject, remember: Callable[[str, str], None]) -> None:
        self.name, self.where, self.subject, self.remember = name, where, subject, remember
        self.tracker: Tracker | None = None
        self.sent = self.failures = 0
        self.error = ""

    def send(self, row: Row) -> None:
        if row["nimg"] <= self.subject.last:
            return
        try:
            if self.tracker is None:
                self.tracker = TRACKERS[self.name].open(self.subject, self.where)
                self.remember(self.name, self.tracker.remote_id)
            self.tracker.log(row["nimg"], numbers_of(row))
        except Exception as error:  # whatever a service raises: the run continues
            self._failed(error)
            return
        self.sent += 1

    def close(self, done: bool) -> None:
        try:
            if self.tracker is not None:
                self.tracker.close(done)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.error = f"{type(error).__name__}: {error}"
        if self.failures == 1:
            logger.warning("%s failed (%s); training continues", self.name, self.error)

    def summary(self) -> str:
        text = f"{self.name}: {self.sent} rows sent"
        return text + (f", {self.failures} failures (last: {self.error})" if self.failures else "")
