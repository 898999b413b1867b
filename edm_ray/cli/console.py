"""What the commands say: plain lines on standard output, one idea a line."""

from __future__ import annotations

import os
import sys
import time


def say(text: str = "") -> None:
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)  # names of files are any bytes
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever was reading has gone (`edm-ray presets | head`): end as other programs do, and without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """A line now and then: always the first and last step, others when ``every`` seconds have gone by."""

    def __init__(self, label: str, every: float = 5.0) -> None:
        self.label, self.every = label, every
        self.started = self.last = time.monotonic()
        self.first: float | None = None

    def update(self, done: float, total: float, detail: str = "") -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = done, now
        if done < total and now - self.last < self.every:
            return
        self.last = now
        left = ""
        if self.first < done < total:
            left = f", {duration((now - self.started) * (total - done) / (done - self.first))} left"
        say(f"  {self.label}: {done:,.0f} of {total:,.0f}{left}{'  ' + detail if detail else ''}")
