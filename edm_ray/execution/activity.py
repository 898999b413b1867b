"""What is being done at this moment, for whoever shows it: a command on a terminal. In a program of one's own nobody
listens, and saying so costs nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Listener(Protocol):
    """Called from any thread."""

    def stage(self, text: str) -> None:
        """Something else is being done now: "starting Ray, about 15 s"."""

    def within(self, done: float, total: float, unit: str) -> None:
        """How far a piece of work is that is counted only when it ends: sampler steps of a chunk."""

    def count(self, done: float, total: float, label: str) -> None:
        """How far it is between two of the lines that the command prints of it itself: images between two ticks."""


_listener: Listener | None = None


@contextlib.contextmanager
def shown_by(listener: Listener) -> Iterator[None]:
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def is_shown() -> bool:
    return _listener is not None


def stage(text: str) -> None:
    if _listener is not None:
        _listener.stage(text)


def within(done: float, total: float, unit: str) -> None:
    if _listener is not None:
        _listener.within(done, total, unit)


def count(done: float, total: float, label: str) -> None:
    if _listener is not None:
        _listener.count(done, total, label)
