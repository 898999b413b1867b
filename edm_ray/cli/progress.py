"""What a command is doing: on a terminal one live line with rate and time left, elsewhere a plain line now and then."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from edm_ray.cli import console
from edm_ray.cli.console import duration, lines_to, say
from edm_ray.execution import activity
from edm_ray.execution.stopping import sigterm_waits

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_S, MOST_PLAIN_S = 5.0, 30.0
"""Between two plain lines: the first at the beginning, the second after a while, so that logs stay short."""
RATE_S = 20.0
"""Rates are those of the last so many seconds."""
REFRESH_PER_S = 5
BAR = 16
"""Columns of the bar; it is left out where the words need the room."""


class Screen:
    """State of one command. Called from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.began = self.printed = time.monotonic()
        self.live: Any = None
        self.ended = False
        """Nothing new is shown."""
        self.text, self.since = "", self.began
        self._forget()

    def _forget(self) -> None:
        self.label, self.done, self.total, self.part = "", 0.0, 0.0, 0.0
        self.unit = self.detail = ""
        self.by_piece = True
        """Whether one more is one more piece of work, so that a part of a piece counts."""
        self.seen: deque[tuple[float, float]] = deque()
        """(when, how far)."""

    # -- what is being done -------------------------------------------------------------------------------------------

    def stage(self, text: str) -> None:
        with self.lock:
            if self.ended or text == self.text:
                return
            self.text, self.since = text, time.monotonic()
            self._forget()
            if self.live is None and text:
                self.printed = self.since
                say(f"  {text}")

    def end(self, text: str) -> None:
        """From now on only this is shown: the command was asked to end."""
        with self.lock:
            self.ended, self.text, self.since = True, text, time.monotonic()
            self._forget()

    def count(self, done: float, total: float, label: str) -> None:
        """No word of it where a line was printed a moment ago."""
        with self.lock:
            if self.ended:
                return
            self._at(done, total, label, by_piece=False)
            if self.live is None and self._is_time():
                self._print()

    def within(self, done: float, total: float, unit: str) -> None:
        with self.lock:
            if self.ended:
                return
            self.part, self.unit = min(done / total, 1.0), f"{unit} {done:,.0f} of {total:,.0f}"
            if self.by_piece:
                self._see()
            if self.live is None and self._is_time():
                self._print()

    def update(self, done: float, total: float, label: str, detail: str) -> None:
        """A piece of work has ended."""
        with self.lock:
            if self.ended:
                return
            first = not self.seen
            self._at(done, total, label)
            self.detail = detail
            if done >= total or (self.live is None and (first or self._is_time())):
                self._print()
            if done >= total:
                self.text, self.since = "", time.monotonic()
                self._forget()

    def _at(self, done: float, total: float, label: str, by_piece: bool = True) -> None:
        if label != self.label:
            self._forget()
            self.label = label
        self.by_piece = by_piece
        if done != self.done:
            self.part, self.unit = 0.0, ""
        self.done, self.total = done, total
        self._see()

    def _see(self) -> None:
        now = time.monotonic()
        self.seen.append((now, self.done + (self.part if self.by_piece else 0.0)))
        while len(self.seen) > 2 and now - self.seen[0][0] > RATE_S:
            self.seen.popleft()

    # -- how it looks -------------------------------------------------------------------------------------------------

    def _is_time(self) -> bool:
        now = time.monotonic()
        return now - self.printed >= min(MOST_PLAIN_S, max(PLAIN_S, (now - self.began) / 20))

    def _print(self) -> None:
        self.printed = time.monotonic()
        say(f"  {self.words()}")

    def rate(self) -> float | None:
        """Of what is counted, a second."""
        if len(self.seen) < 2 or self.seen[-1][1] <= self.seen[0][1]:
            return None
        (began, first), (ended, last) = self.seen[0], self.seen[-1]
        return (last - first) / max(ended - began, 1e-9)

    def words(self) -> str:
        """One line, now."""
        if not self.total:
            waited = time.monotonic() - self.since
            doing = ", ".join(word for word in (self.text, self.unit) if word) or "finishing"
            return f"{doing}{f' ({duration(waited)})' if waited >= 2 else ''}"
        inside = f" ({self.unit})" if self.unit and self.done < self.total else ""
        left, rate = "", self.rate()
        if rate and self.done < self.total:
            left = f", {duration((self.total - self.seen[-1][1]) / rate)} left"
        detail = f"  {self.detail}" if self.detail else ""
        return f"{self.label}: {self.done:,.0f} of {self.total:,.0f}{inside}{left}{detail}"

    def __rich__(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self.lock:
            words, share = self.words(), (self.done + self.part) / self.total if self.total else None
        line = Table.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(no_wrap=True, overflow="ellipsis")
        cells: list[RenderableType] = [self.spinner, Text(words)]
        if share is not None:
            rate = self.rate()
            pace = "" if rate is None else (f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            reached = f"{share:.0%} {pace}"
            if 2 + len(words) + 1 + BAR + 1 + len(reached) <= self.live.console.width:
                line.add_column(width=BAR)
                line.add_column(no_wrap=True)
                cells += [ProgressBar(total=1.0, completed=share, width=BAR), Text(reached)]
        line.add_row(*cells)
        return line

    @contextlib.contextmanager
    def shown(self, text: str) -> Iterator[None]:
        """On a terminal, for as long as something is done that takes a while; text: what is done first."""
        stream = lines_to()
        if self.live is not None or not is_terminal(stream):
            yield
            return
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        out = Console(file=stream, highlight=False)
        self.spinner = Spinner("line" if out.options.ascii_only else "dots")
        self.text, self.since = text, time.monotonic()
        live = Live(self, console=out, refresh_per_second=REFRESH_PER_S, transient=True, redirect_stderr=True)
        self.live, console.printer, console.hider = live, _printer(out), self.hidden
        try:
            with sigterm_waits():  # its thread leaves it to this one
                live.start()
            yield
        finally:
            live.stop()
            self.live, console.printer, console.hider = None, None, contextlib.nullcontext

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """The live line is away meanwhile, and standard output and standard error are what they are."""
        self.live.stop()
        try:
            yield
        finally:
            with sigterm_waits():
                self.live.start()


def _printer(out: Any) -> Any:
    """Lines above the live one."""
    return lambda text: out.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def is_terminal(stream: TextIO) -> bool:
    """One that knows how to rewrite a line."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


_screen = Screen()


def screen() -> Screen:
    """Of the command that runs."""
    return _screen


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """A new screen for the length of a command. One inside of another shows its work on the outer one's."""
    global _screen
    if activity.is_shown():
        yield
        return
    _screen = Screen()
    with activity.shown_by(_screen):
        yield


class Progress:
    """How many pieces of one kind are done."""

    def __init__(self, label: str) -> None:
        self.label = label

    def update(self, done: float, total: float, detail: str = "") -> None:
        _screen.update(done, total, self.label, detail)
