"""What the commands say: plain lines on standard output, one idea a line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

printer: Callable[[str], None] | None = None
"""Prints a line above the live one, where there is one (`progress`)."""


def lines_to() -> TextIO:
    """Where lines for people go."""
    return sys.stdout


def say(text: str = "") -> None:
    stream = lines_to()
    encoding = stream.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)  # names of files are any bytes
    try:
        if printer is not None:
            printer(text)
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
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
