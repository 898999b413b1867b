"""What a command and the workers of its training tell each other: to stop, how far they are; and nodes that go or come.

Both travel as keys of Ray's own store, which every node reaches and which costs no process. Rank 0 looks there, and
writes there, from a thread; a drain is told to every worker by Ray. What one worker knows all act on after the same
step (`training.signals`).
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable

from edm_ray.distributed.ray_private import delete_key, get_value, has_key, own_node_is_drained, put_key, put_value
from edm_ray.training.signals import Signal

DRIVER_POLL_S, WORKER_POLL_S = 0.1, 0.5


class StopSign:
    """In the driver: sets a key as soon as ``must_stop`` says so, and hears from rank 0 how far the loop is."""

    def __init__(self, must_stop: Callable[[], bool], on_step: Callable[[int, int], None]) -> None:
        self.must_stop, self.on_step = must_stop, on_step
        self.key, self.ended = f"stop:{uuid.uuid4().hex}", threading.Event()

    def __enter__(self) -> StopSign:
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.watcher.join()
        for key in (self.key, _progress(self.key)):
            delete_key(key)

    def _watch(self) -> None:
        told, heard, looked_at = False, b"", 0.0
        while not self.ended.wait(DRIVER_POLL_S):
            if not told and self.must_stop():
                put_key(self.key)
                told = True
            if time.monotonic() - looked_at < WORKER_POLL_S:
                continue
            looked_at = time.monotonic()
            with contextlib.suppress(Exception):  # a head that does not answer for a moment
                if (found := get_value(_progress(self.key))) and found != heard:
                    heard = found
                    images_seen, total, _ = map(int, found.split())
                    self.on_step(images_seen, total)


class Listener:
    """In a worker: what it has been told so far. Asking costs nothing.

    ``room``: whether a larger group could be started; then this one is to end.
    """

    def __init__(self, key: str, rank: int, room: Callable[[], bool] = lambda: False) -> None:
        self.key, self.room = key, room
        self.told = threading.Event()
        self.at: tuple[int, int] | None = None
        if rank == 0:
            threading.Thread(target=self._look, daemon=True).start()

    def on_step(self, images_seen: int, total: int) -> None:
        self.at = images_seen, total

    def ask(self) -> Signal:
        if self.told.is_set():
            return Signal.STOP
        return Signal.SAVE if own_node_is_drained() else Signal.NONE

    def _look(self) -> None:
        """As long as the process lives: while it saves, the command wants to know that it is there."""
        beat = 0
        while True:
            # A head that does not answer for a moment is asked again.
            with contextlib.suppress(Exception):
                if not self.told.is_set() and (has_key(self.key) or self.room()):
                    self.told.set()
                if self.at is not None:
                    beat += 1
                    put_value(_progress(self.key), f"{self.at[0]} {self.at[1]} {beat}".encode())
            time.sleep(WORKER_POLL_S)


def _progress(key: str) -> str:
    return f"{key}:at"
