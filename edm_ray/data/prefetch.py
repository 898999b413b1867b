"""Read ahead: one thread, a short queue; what goes wrong in the thread is raised where the batch is asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

Batch = tuple[torch.Tensor, torch.Tensor]
Ready = tuple[np.ndarray, Batch]
_WAIT_S = 0.1


class Prefetch:
    """At most one thread; every wait in it ends when `stop` is called, and every wait for it when it is dead."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._queue: queue.Queue[Ready | Exception | None] = queue.Queue()
        self._seed = 0

    def start(self, read: Callable[[Any], Ready], batches: Iterable[Any], seed: int, depth: int) -> None:
        """``read`` makes of each of ``batches`` the positions that it is for and what stands there."""
        assert depth >= 1
        self.stop()
        self._stop, self._queue, self._seed = threading.Event(), queue.Queue(depth), seed
        arguments = (read, batches, self._queue, self._stop)
        self._thread = threading.Thread(target=_work, args=arguments, daemon=True, name="prefetch")
        self._thread.start()

    def take(self, positions: np.ndarray, seed: int) -> Batch | None:
        """The next batch read ahead; None when there is none, or it is another one: then reading ahead ends."""
        if self._thread is None:
            return None
        while True:
            try:
                item = self._queue.get(timeout=_WAIT_S)
            except queue.Empty:
                if self._thread.is_alive() or not self._queue.empty():
                    continue
                item = None
            break
        if isinstance(item, Exception):
            self.stop()
            raise item
        if item is None or seed != self._seed or not np.array_equal(item[0], positions):
            self.stop()
            return None
        return item[1]

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None


def _work(
    read: Callable[[Any], Ready],
    batches: Iterable[Any],
    out: queue.Queue[Ready | Exception | None],
    stop: threading.Event,
) -> None:
    def give(item: Ready | Exception | None) -> bool:
        while not stop.is_set():
            try:
                out.put(item, timeout=_WAIT_S)
            except queue.Full:
                continue
            return True
        return False

    try:
        for batch in batches:
            if stop.is_set() or not give(read(batch)):
                return
        give(None)
    except Exception as error:
        give(error)
