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

from ray.experimental import internal_kv

from edm_ray.training.signals import Signal

NAMESPACE = "edm_ray"
DRIVER_POLL_S, WORKER_POLL_S = 0.1, 0.5


@contextlib.contextmanager
def stop_sign(must_stop: Callable[[], bool]) -> Iterator[str]:
    """In the driver: a key that is set as soon as ``must_stop`` says so."""
    key, ended = f"stop:{uuid.uuid4().hex}", threading.Event()

    def watch() -> None:
        while not ended.wait(DRIVER_POLL_S):
            if must_stop():
                internal_kv._internal_kv_put(key, b"1", namespace=NAMESPACE)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield key
    finally:
        ended.set()
        watcher.join()
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)


def listener(key: str, rank: int, room: Callable[[], bool] = lambda: False) -> Callable[[], Signal]:
    """In a worker: what it has been told so far. Asking costs nothing.

    ``room``: whether a larger group could be started; then this one is to end.
    """
    told = threading.Event()

    def look() -> None:
        while not told.wait(WORKER_POLL_S):
            # A head that does not answer for a moment is asked again.
            with contextlib.suppress(Exception):
                if internal_kv._internal_kv_get(key, namespace=NAMESPACE) or room():
                    told.set()

    if rank == 0:
        threading.Thread(target=look, daemon=True).start()

    def ask() -> Signal:
        if told.is_set():
            return Signal.STOP
        return Signal.SAVE if _will_be_taken_away() else Signal.NONE

    return ask


def _will_be_taken_away() -> bool:
    """Whether Ray has been told that a node of these workers is about to go (spot notice, drain).

    `ray.train.get_preemption_info` gives the same, but as a barrier of all workers, which a step cannot afford.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
