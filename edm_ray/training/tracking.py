"""Rows of ``metrics.jsonl``, handed on to trackers by a thread: nothing waits for them, and none can stop a run.

How far each tracker is, and which remote run it writes to, is kept in RUN/trackers.json. A row that could not be
delivered is tried again with the next one, and by the next command on the same run; none is delivered twice.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import queue
import threading
from collections import deque
from typing import Any

from edm_ray.storage import uris
from edm_ray.training.tally import SIGMA_EDGES
from edm_ray.training.trackers import TRACKERS, Subject, Tracker

logger = logging.getLogger(__name__)
STATE_FILE = "trackers.json"
CLOSE_SECONDS = 30.0
"""How long the end of a command waits for trackers that are behind."""
_NOT_TRACKED = ("nimg", "total")


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """A row as flat finite numbers: ``loss_by_sigma`` becomes a number for each bin that had images."""
    flat = {key: value for key, value in row.items() if key not in (*_NOT_TRACKED, "loss_by_sigma")}
    edges = [f"{edge:g}" for edge in SIGMA_EDGES]
    names = [f"below-{edges[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), f"from-{edges[-1]}"]
    flat |= {f"loss_by_sigma/{name}": loss for name, loss in zip(names, row.get("loss_by_sigma", ()))}
    return {key: float(value) for key, value in flat.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class _Line:
    """One tracker, what waits for it, and what went wrong."""

    def __init__(self, name: str, where: str, subject: Subject) -> None:
        self.name, self.where, self.subject = name, where, subject
        self.tracker: Tracker | None = None
        self.waiting: deque[dict[str, Any]] = deque()
        self.sent = self.failures = 0
        self.error = ""

    def add(self, row: dict[str, Any]) -> None:
        last = self.waiting[-1]["nimg"] if self.waiting else self.subject.memory.get("nimg", -1)
        if row["nimg"] > last:
            self.waiting.append(row)

    def send(self) -> None:
        """Everything that waits, in order, up to the first failure."""
        while self.waiting:
            row = self.waiting[0]
            try:
                if self.tracker is None:
                    self.tracker = TRACKERS[self.name].open(self.subject, self.where)
                self.tracker.log(row["nimg"], numbers_of(row))
            except Exception as error:  # whatever a service raises: the run goes on
                self._failed(error)
                return
            self.waiting.popleft()
            self.subject.memory["nimg"] = row["nimg"]
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
            logger.warning("%s failed (%s); training goes on, what it missed is sent later", self.name, self.error)

    def summary(self) -> str:
        text = f"{self.name}: {self.sent} rows sent"
        if self.failures:
            text += f", {self.failures} failures (last: {self.error})"
        return text + (f", {len(self.waiting)} rows not sent: the same command sends them" if self.waiting else "")


class Tracking:
    """Trackers of one run. ``chosen``: name -> where, from `parse_trackers`. Rows that the run has already are caught
    up on; `add` takes the next and returns at once."""

    def __init__(
        self, chosen: dict[str, str], run_uri: str, settings: dict[str, Any], rows: list[dict[str, Any]]
    ) -> None:
        self.state_uri = uris.join(run_uri, STATE_FILE)
        state = json.loads(uris.read_bytes(self.state_uri)) if chosen and uris.exists(self.state_uri) else {}
        self.state: dict[str, dict[str, Any]] = {**state, **{name: state.get(name, {}) for name in chosen}}
        self.lines = [
            _Line(name, where, Subject(run_uri, settings, self.state[name])) for name, where in chosen.items()
        ]
        self.rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.done = False
        self.thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        for row in rows:
            self.add(row)
        if self.lines:
            self.thread.start()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.put(row)

    def _work(self) -> None:
        while True:
            batch = [self.rows.get()]
            while not self.rows.empty():
                batch.append(self.rows.get())
            for line in self.lines:
                for row in batch:
                    if row is not None:
                        line.add(row)
                line.send()
            self._remember()
            if None in batch:
                for line in self.lines:
                    line.close(self.done)
                return

    def _remember(self) -> None:
        try:
            uris.write_bytes(self.state_uri, json.dumps(self.state, indent=1, sort_keys=True).encode())
        except OSError as error:
            logger.warning("%s: could not be written (%s); trackers may get some rows twice", self.state_uri, error)

    def close(self, done: bool) -> list[str]:
        """Send what waits, for at most CLOSE_SECONDS; what became of each tracker, in words."""
        if not self.lines:
            return []
        self.done = done
        self.rows.put(None)
        self.thread.join(CLOSE_SECONDS)
        late = f"; did not end within {CLOSE_SECONDS:.0f} s" if self.thread.is_alive() else ""
        return [line.summary() + late for line in self.lines]
