"""How a program is asked to end, and how it does: Ctrl-C (SIGINT), SIGTERM, a terminal that was closed (SIGHUP).

The first one asks. `Interrupted` is raised in the main thread; but work that has something to save (`saving`) is only
told, saves it, and ends by itself. The second one leaves at once: files are written whole or not at all, so nothing is
damaged.

Python runs the handler of a signal in the main thread, which may be inside C code for seconds. So a command has a
second thread, which hears of a signal first (`signal.set_wakeup_fd`): it says so at once, and it ends the process where
the main thread does not come to its end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_S = {signal.SIGINT: 0.1, signal.SIGTERM: 2.0, signal.SIGHUP: float("inf")}
"""Another one within so long is the same request: `timeout` and wrappers send SIGTERM twice, and a terminal that closes
sends SIGHUP twice."""
GRACE_S = 8.0
"""A command that saves nothing and has not ended by then is ended."""
REMIND_S, LOOK_S, TELL_S = 5.0, 0.25, 1.0
WAKE = signal.SIGURG
"""Ends a system call that the main thread has entered just after the signal came; otherwise ignored by everybody."""


class Interrupted(KeyboardInterrupt):
    """Asked to end by a signal. Raised in the main thread only."""

    def __init__(self, number: int, said: bool = False) -> None:
        """said: how to resume was said already."""
        super().__init__(signal.Signals(number).name)
        self.number, self.said = number, said

    @property
    def code(self) -> int:
        """Exit code by convention: 130 SIGINT, 143 SIGTERM, 129 SIGHUP."""
        return 128 + self.number


class Front(Protocol):
    """What a command does when it is asked to end. Called in a thread of its own."""

    def asked(self, number: int, saves: bool) -> None:
        """Say so. saves: the work saves something before it ends."""

    def still(self, seconds: float) -> None:
        """It saves for so long now."""

    def leave(self, number: int, begun: bool = True) -> None:
        """End the process at once. begun: whether it had begun anything."""


class _Stopping:
    """State of one program, or of one call of a library function."""

    def __init__(self, front: Front | None) -> None:
        self.front = front
        self.number: int | None = None
        """The first signal that came."""
        self.last_at = -float("inf")
        self.handled = self.raised = False
        self.nothing_begun = False
        """A command only: it can be left at once."""
        self.worth: Callable[[], bool] | None = None
        """Whether it is worth waiting for the work that saves; None where nothing does."""

    @property
    def saves(self) -> bool:
        return self.worth is not None and self.worth()

    def is_again(self, number: int) -> bool:
        """Whether this signal is a second request. Asked once a signal: by the listener, or where there is none by the
        handler."""
        before, self.last_at = self.last_at, time.monotonic()
        return self.last_at - SAME_S[signal.Signals(number)] > before > -float("inf")

    def handle(self, number: int, frame: Any) -> None:
        """In the main thread."""
        self.number, self.handled = self.number or number, True
        if self.nothing_begun:
            return
        again = self.front is None and self.is_again(number)
        if again or not (self.raised or self.saves):
            self.raised = True
            raise Interrupted(self.number)


_current: _Stopping | None = None


def asked() -> int | None:
    """The signal that asked this program to end, if one has."""
    return None if _current is None else _current.number


def was_raised() -> bool:
    """Whether Interrupted was raised: errors that come after it come of it."""
    return _current is not None and _current.raised


def is_command() -> bool:
    """Whether this program ends when it is asked to: a command, not a program that calls edm_ray."""
    return _current is not None and _current.front is not None


@contextlib.contextmanager
def heard(front: Front) -> Iterator[None]:
    """For the length of a command. One inside of another leaves it to the outer one, as does a thread."""
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = _Stopping(front)
    with _wakeup_pipe() as pipe, _handled(stopping, ASKING):
        listener = _Listener(stopping, front, pipe)
        before = signal.signal(WAKE, lambda number, frame: None)
        try:
            yield
        finally:
            signal.signal(WAKE, before)
            if stopping.number is not None:
                listener.told.wait(TELL_S)  # its line comes before the last one


@contextlib.contextmanager
def nothing_begun() -> Iterator[None]:
    """Of a command that only loads what it needs: libraries swallow exceptions while they are imported, so it is left
    without one."""
    stopping = _current
    if stopping is None or stopping.front is None or stopping.nothing_begun:
        yield
        return
    stopping.nothing_begun = True
    try:
        yield
    finally:
        stopping.nothing_begun = False
        check()


def check() -> None:
    """Raise Interrupted where this program was asked to end: an earlier one may have been swallowed."""
    if _current is not None and _current.number is not None:
        _current.raised = True
        raise Interrupted(_current.number)


@contextlib.contextmanager
def saving(worth: Callable[[], bool] = lambda: True) -> Iterator[Callable[[], bool]]:
    """Work that saves what it has and ends by itself when it is asked to. Yields whether it was.

    worth: asked when a signal comes: False where there is nothing to save yet; then Interrupted is raised at once.
    Outside of a command SIGINT and SIGTERM are heard meanwhile, and the second one raises Interrupted.
    """
    if _current is None:
        if threading.current_thread() is not threading.main_thread():
            yield lambda: False
            return
        with _handled(_Stopping(None), (signal.SIGINT, signal.SIGTERM)), saving(worth) as was_asked:
            yield was_asked
        return
    check()
    stopping = _current
    outer, stopping.worth = stopping.worth, worth
    try:
        yield lambda: stopping.number is not None
    finally:
        stopping.worth = outer
    check()  # it ended by itself at the same moment


@contextlib.contextmanager
def sigterm_waits() -> Iterator[None]:
    """SIGTERM reaches this thread, and threads that it starts, afterwards only. Some libraries (Ray's core) put a
    handler of their own in place of Python's, which writes a dump."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _handled(stopping: _Stopping, numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Signals that are ignored (`nohup`, background jobs of scripts) stay ignored."""
    global _current
    before = {}
    for number in numbers:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, stopping.handle)
    _current = stopping
    try:
        yield
    except KeyboardInterrupt as error:
        if stopping.number is None or isinstance(error, Interrupted):
            raise
        raise Interrupted(stopping.number) from error  # Ray's calls raise one of their own in its place
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _wakeup_pipe() -> Iterator[int]:
    """Yields where the numbers of signals can be read as they come; the end of the file when it is over."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


class _Listener(threading.Thread):
    """Hears of signals before the main thread does. It ends with the command, at the end of the pipe."""

    def __init__(self, stopping: _Stopping, front: Front, pipe: int) -> None:
        super().__init__(daemon=True, name="signals")
        self.stopping, self.front, self.pipe = stopping, front, pipe
        self.began = self.saved_at = 0.0
        self.reminded = REMIND_S
        self.told = threading.Event()
        self.start()

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # the main thread is who must be woken
        with os.fdopen(self.pipe, "rb", buffering=0) as pipe:
            while True:
                if not select.select([pipe], [], [], LOOK_S if self.began else None)[0]:
                    self._wait()
                elif numbers := pipe.read(64):
                    for number in numbers:
                        if number in ASKING:
                            self._hear(number)
                else:
                    return

    def _hear(self, number: int) -> None:
        self.stopping.number = first = self.stopping.number or number
        if self.stopping.is_again(number):
            self.front.leave(first)
        elif not self.began:
            self.began = self.saved_at = time.monotonic()
            if self.stopping.nothing_begun:
                self.front.leave(first, begun=False)
            self.front.asked(number, self.stopping.saves)
            self.told.set()

    def _wait(self) -> None:
        now = time.monotonic()
        if not self.stopping.handled:
            signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
        if self.stopping.saves:
            self.saved_at = now
            if now - self.began > self.reminded:
                self.reminded += REMIND_S
                self.front.still(now - self.began)
        elif now - self.saved_at > GRACE_S:
            assert self.stopping.number is not None
            self.front.leave(self.stopping.number)
