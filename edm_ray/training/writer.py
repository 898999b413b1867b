"""Checkpoints and snapshots, written by a thread: a step waits for a copy of the tensors, not for storage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from edm_ray.errors import InputError, IntegrityError

logger = logging.getLogger(__name__)
TRIES, FIRST_WAIT_S = 4, 0.5


class BackgroundWriter:
    """At most one call's writes are under way; an error surfaces at the next call, so none is lost."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def submit(self, *writes: Callable[[], None]) -> None:
        """Start writes, in order, when those before have ended; what fails is tried again, with growing waits."""
        self.wait()
        self.pending = self.pool.submit(_persist_all, writes)

    def wait(self) -> None:
        """Until nothing is under way. Raises what the write raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """As `wait`, and no more writes."""
        try:
            self.wait()
        finally:
            self.pool.shutdown()


def _persist_all(writes: tuple[Callable[[], None], ...]) -> None:
    for write in writes:
        _persist(write)


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
