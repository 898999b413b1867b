"""What the commands say: plain lines on standard output, one idea a line. With --json one JSON object is there instead,
and the lines go to standard error."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TextIO

_as_json: contextvars.ContextVar[bool] = contextvars.ContextVar("as_json", default=False)
printer: Callable[[str], None] | None = None
"""Prints a line above the live one, where there is one (`progress`)."""
hider: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
"""Takes the live line away meanwhile, where there is one (`progress`)."""


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Options of every command that reports something."""

    json: bool = False
    """Print the result as one JSON object on standard output; messages go to standard error."""


@contextlib.contextmanager
def as_json(asked: bool) -> Iterator[None]:
    """Whether `report` prints, as long as a command runs. (The demo's commands run inside of another.)"""
    token = _as_json.set(asked)
    try:
        yield
    finally:
        _as_json.reset(token)


def report(content: Mapping[str, Any]) -> None:
    """The result of a command, for --json: once a command. Plain values; others as their text, and numbers that JSON
    does not have ("inf", "nan") too."""
    if _as_json.get():
        write_out(json.dumps(_plain(content), indent=1, default=str, allow_nan=False))


def write_out(text: str) -> None:
    """A result for programs, to standard output as it is: a live line would fold it, or take it to standard error."""
    with without_live_line():
        _write(sys.stdout, text)


def without_live_line() -> AbstractContextManager[None]:
    """What is written meanwhile stands alone, and goes where it should."""
    return hider()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def lines_to() -> TextIO:
    """Where lines for people go."""
    return sys.stderr if _as_json.get() else sys.stdout


def say(text: str = "") -> None:
    _write(lines_to(), text, printer)


def _write(stream: TextIO, text: str, live: Callable[[str], None] | None = None) -> None:
    encoding = stream.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)  # names of files are any bytes
    try:
        if live is not None:
            live(text)
            return
        stream.write(f"{text}\n")
        stream.flush()
    except BrokenPipeError:
        # Whoever was reading has gone (`edm-ray presets | head`): end as other programs do, and without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        forget_terminal()  # it was closed; SIGHUP says so


def forget_terminal() -> None:
    """What would be written to a terminal that was closed goes nowhere, without an error."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


def duration(seconds: float) -> str:
    if 0 < seconds < 0.5:
        return "under 1 s"
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 72 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    days = seconds / 86400
    return f"{days:,.0f} days" if days < 2 * 365 else f"{days / 365.25:,.0f} years"
