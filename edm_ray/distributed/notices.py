"""How the workers of a training hear of what comes from outside: SIGTERM to the command, nodes that go or come.

The command's SIGTERM travels as one key of Ray's own store, which every node reaches and which costs no process. Rank 0
looks there from a thread; a drain is told to every worker by Ray. What one worker knows all act on after the same step
(`training.signals`).
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator

from edm_ray.distributed.ray_private import delete_key, has_key, own_node_is_drained, put_key
from edm_ray.training.signals import Signal

DRIVER_POLL_S, WORKER_POLL_S = 0.1, 0.5


@contextlib.contextmanager
def stop_sign(must_stop: Callable[[], bool]) -> Iterator[str]:
    """In the driver: a key that is set as soon as ``must_stop`` says so."""
    key, ended = f"stop:{uuid.uuid4().hex}", threading.Event()

    def watch() -> None:
        while not ended.wait(DRIVER_POLL_S):
            if must_stop():
                put_key(key)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield key
    finally:
        ended.set()
        watcher.join()
        delete_key(key)


def listener(key: str, rank: int, room: Callable[[], bool] = lambda: False) -> Callable[[], Signal]:
    """In a worker: what it has been told so far. Asking costs nothing.

    ``room``: whether a larger group could be started; then this one is to end.
    """
    told = threading.Event()

    def look() -> None:
        while not told.wait(WORKER_POLL_S):
            # A head that does not answer for a moment is asked again.
            with contextlib.suppress(Exception):
                if has_key(key) or room():
                    told.set()

    if rank == 0:
        threading.Thread(target=look, daemon=True).start()

    def ask() -> Signal:
        if told.is_set():
            return Signal.STOP
        return Signal.SAVE if own_node_is_drained() else Signal.NONE

    return ask
