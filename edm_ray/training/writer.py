"""Checkpoints and snapshots, written by a thread: a step waits for a copy of the tensors, not for storage."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from edm_ray.errors import InputError, IntegrityError

logger = logging.getLogger(__name__)
TRIES, FIRST_WAIT_S = 4, 0.5
PENDING = 2


class BackgroundWriter:
    """One call's writes are under way and one more's may wait, so that a slow upload does not hold up the next
    checkpoint; a third call waits. That is the bound: memory holds two copies, and where storage is slower than
    checkpoints are asked for, training goes at the pace of storage.

    An error surfaces at the next call, so none is lost, and nothing is written after it: a checkpoint stands for all
    that lies before it.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: deque[Future[None]] = deque()
        self.failed = False

    def submit(self, *copies: Callable[[], Callable[[], None]]) -> None:
        """Call each of ``copies`` now, and in the background, in order, what they return.

        Waits for room first, so that no third copy is made. What fails is tried again, with growing waits.
        """
        while len(self.pending) == PENDING or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()
        writes = [copy() for copy in copies]
        self.pending.append(self.pool.submit(self._persist_all, writes))

    def _persist_all(self, writes: list[Callable[[], None]]) -> None:
        if self.failed:
            return
        try:
            for write in writes:
                _persist(write)
        except BaseException:
            self.failed = True
            raise

    def close(self) -> None:
        """When all is written. Raises what a write raised."""
        try:
            while self.pending:
                self.pending.popleft().result()
        finally:
            self.pool.shutdown()


def _persist(write: Callable[[], None]) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            write()
            return
        except (InputError, IntegrityError):
            raise
        except OSError as error:
            if attempt == TRIES:
                raise
            wait = FIRST_WAIT_S * 2 ** (attempt - 1)
            logger.warning("writing a checkpoint failed (%s); trying again in %.1f s", error, wait)
            time.sleep(wait)


def persist_or_warn(write: Callable[[], None], what: str) -> None:
    """A write that training can do without: what fails, after the same tries, is named in the log."""
    try:
        _persist(write)
    except Exception as error:
        logger.warning("%s: could not be written (%s: %s); training goes on", what, type(error).__name__, error)
