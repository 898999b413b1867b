"""What a command says and does when it is asked to end (`edm_ray.execution.stopping`)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from edm_ray.cli.console import duration, forget_terminal, say
from edm_ray.cli.progress import screen

CLEAN_LINE = b"\r\x1b[2K\x1b[?25h"
"""The live line is wiped, the cursor is shown again."""
KEPT = {
    "demo": "each step's work so far is kept; the same command resumes",
    "prepare": "shards that are written are kept; the same command resumes",
    "train": "the newest checkpoint is kept; the same command resumes from it",
    "reference": "parts that are measured are kept; the same command resumes",
    "generate": "images sampled for a file or folder are kept; the same command resumes",
    "evaluate": "chunks of images that are sampled are kept; the same command resumes",
    "sweep": "chunks of images that are sampled are kept; the same command resumes",
    "weights": "what came of a download is kept; the same command resumes",
    "submit": "a job that was submitted runs on",
}
"""Command -> what is left of its work, and how to resume; those that are not here hold nothing."""


class Leaving:
    """Of one command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def asked(self, number: int, saves: bool) -> None:
        if number == signal.SIGHUP:
            forget_terminal()
        doing = "writing a checkpoint" if saves else "ending what has begun"
        screen().end("stopping")
        say(f"stopping: {doing}; again to leave now")

    def still(self, seconds: float) -> None:
        say(f"stopping: still writing the checkpoint, {duration(seconds)}; again to leave now")

    def leave(self, number: int, begun: bool = True) -> None:
        if number == signal.SIGHUP:
            forget_terminal()
        said = f"left at once; {self._kept()}" if begun else "stopped; nothing was begun"
        live = CLEAN_LINE if screen().live is not None else b""
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), live + f"edm-ray: {said}\n".encode())
        os._exit(128 + number)

    def stopped(self) -> str:
        """The last line of a command that was interrupted."""
        return f"edm-ray: stopped; {self._kept()}"

    def _kept(self) -> str:
        return KEPT.get(self.command, "nothing was changed")


def leave(code: int) -> None:
    """End the process: all is written and closed, and threads of libraries are not waited for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
