"""A command in a terminal of its own: what a person sees and when, and what Ctrl-C and closing the window do to it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07")
"""Of the terminal: colours, moves of the cursor."""
SPINNER = re.compile("[\u2800-\u28ff] ")
"""A live line begins with one."""
COMMAND = (sys.executable, "-c", "import sys; from edm_ray.cli import main; sys.exit(main())")
ROOT = Path(__file__).parents[1]


class Terminal:
    """Runs a command as the foreground process group of a new session; `edm-ray` where only its arguments are given."""

    def __init__(self, *arguments: str, program: Sequence[str] = COMMAND, columns: int = 100, **variables: str) -> None:
        self.started = time.monotonic()
        self.pieces: list[tuple[float, str]] = []
        """(seconds since the start, what came then)."""
        self.code: int | None = None
        self.ended: float | None = None
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # ignored where tests run in the background
                signal.signal(number, signal.SIG_DFL)
            words = [*program, *arguments]
            os.execvpe(words[0], words, {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **variables})
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.close()

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    @property
    def raw(self) -> str:
        return "".join(text for _, text in self.pieces)

    @property
    def text(self) -> str:
        """Without the terminal's codes."""
        return CODES.sub("", self.raw).replace("\r\n", "\n").replace("\r", "\n")

    @property
    def story(self) -> str:
        """Its lines, but the live ones; the last of those at the end."""
        lines = self.text.splitlines()
        still = [line for line in lines if line.strip() and not SPINNER.match(line)]
        return "\n".join([*still, *[line for line in lines if SPINNER.match(line)][-1:]])

    def read(self, seconds: float) -> bool:
        """What comes within so long; False where the command has ended."""
        if self.code is not None:
            return False
        if self.master >= 0 and select.select([self.master], [], [], seconds)[0]:
            try:
                if piece := os.read(self.master, 1 << 16):
                    self.pieces.append((self.now, piece.decode(errors="replace")))
                    return True
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                time.sleep(min(seconds, 0.02))  # the last writer has closed it
        elif self.master < 0:
            time.sleep(min(seconds, 0.05))
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if done:
            self.code, self.ended = os.waitstatus_to_exitcode(status), self.now
            return False
        return True

    def watch(self, seconds: float) -> None:
        """For the whole of so long, whatever comes."""
        end = self.now + seconds
        while self.now < end and self.read(0.05):
            pass

    def until(self, pattern: str, seconds: float) -> float:
        """When the pattern was first seen. Fails with all that was seen where it does not come, or the command ends."""
        end = self.now + seconds
        while not (found := re.search(pattern, self.text)) and self.now < end and self.read(0.1):
            pass
        while not found and self.read_rest():
            found = re.search(pattern, self.text)
        found = found or re.search(pattern, self.text)
        assert found, f"no {pattern!r} in {seconds:g} s (code {self.code}):\n{self.story}"
        return self.now

    def read_rest(self) -> bool:
        """Of a command that has ended: whether there was more to read."""
        if self.code is None or self.master < 0 or not select.select([self.master], [], [], 0)[0]:
            return False
        try:
            piece = os.read(self.master, 1 << 16)
        except OSError:
            return False
        if piece:
            self.pieces.append((self.now, piece.decode(errors="replace")))
        return bool(piece)

    def wait(self, seconds: float) -> int:
        """The exit code; that of a process that a signal ended is negative."""
        end = self.now + seconds
        while self.now < end and self.read(0.1):
            pass
        while self.code is None and self.now < end:
            self.read(0.1)
        while self.read_rest():
            pass
        assert self.code is not None, f"not ended in {seconds:g} s:\n{self.story}"
        return self.code

    def key(self, character: str = "\x03") -> float:
        """Type it; Ctrl-C by default. Returns when."""
        os.write(self.master, character.encode())
        return self.now

    def kill(self, number: int = signal.SIGTERM) -> float:
        """To the command alone, as `kill PID` does."""
        os.kill(self.pid, number)
        return self.now

    def close(self) -> float:
        """Close the window: SIGHUP to the command, and nowhere to write to."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        return self.now

    def silences(self, until: float | None = None) -> list[tuple[float, float]]:
        """(how long, from when), the longest first: nothing was written meanwhile."""
        last = self.ended if until is None else until
        moments = [0.0, *[when for when, _ in self.pieces if last is None or when <= last], last or self.now]
        return sorted(((after - before, before) for before, after in itertools.pairwise(moments)), reverse=True)
