"""What a pool's dispatchers have to tell the person at the command, and whether they are there at all.

Workers and dispatchers write to Ray's logs, which nobody looks at. So the command asks for news without end; that is
how it sees, too, that the dispatchers have stopped answering.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from edm_ray.distributed.head import HeadWatch
from edm_ray.distributed.patience import Patience, since

logger = logging.getLogger(__name__)
ASK_S = 2.0
"""No news is an answer too, after so long."""
LOOK_S = 0.5
"""How soon the command may end."""
HUSH_S = 1.0
"""Dispatchers that do not answer are not waited for."""
SLOW_START = 10
"""A process that starts imports torch: until its first answer, so many times as long is waited for it."""


class News:
    """On the dispatchers' side: lines, numbered from the start of their process."""

    def __init__(self) -> None:
        self.life = secrets.token_hex(4)
        self.lines: list[str] = []
        self.changed = asyncio.Event()

    def add(self, line: str) -> None:
        logger.warning("%s", line)
        self.lines.append(line)
        self.changed.set()

    async def after(self, life: str, seen: int) -> tuple[str, int, list[str]]:
        """(life, lines so far, those that the caller has not seen). life, seen: as the last answer had them."""
        known = seen if life == self.life else 0
        if known == len(self.lines):
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), ASK_S)
        return self.life, len(self.lines), self.lines[known:]


class Listener:
    """On the command's side: a thread that passes news on, and starts dispatchers again that do not answer."""

    def __init__(self, dispatchers: Any, patience: Patience) -> None:
        self.dispatchers, self.patience = dispatchers, patience
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def leave(self) -> None:
        """It must not outlive Ray: a thread that calls Ray after its end takes the whole process with it. Its question
        is answered first: Ray complains on the screen of calls to an actor that was killed."""
        self.ended.set()
        with contextlib.suppress(RayError, RuntimeError, ValueError):
            ray.get(self.dispatchers.hush.remote(), timeout=HUSH_S)
        self.thread.join(30)

    def _listen(self) -> None:
        life, seen, heard = "", 0, time.monotonic()
        asked: Any = None
        met, head = False, HeadWatch()
        while not self.ended.is_set():
            try:
                asked = asked or self.dispatchers.news.remote(life, seen)
                life, seen, lines = ray.get(asked, timeout=LOOK_S)
            except GetTimeoutError:
                silent = time.monotonic() - heard
                if silent > 2 * ASK_S and met and not head.answers():
                    heard = time.monotonic()
                    continue
                if silent > self.patience.silent_s * (1 if met else SLOW_START) and not self.ended.is_set():
                    logger.warning("the pool's dispatcher has not answered %s; it is started again", since(silent))
                    ray.kill(self.dispatchers, no_restart=False)
                    heard, met, asked = time.monotonic(), False, None
                continue
            except (RayError, RuntimeError, ValueError, SystemExit):
                return  # gone for good, or Ray has ended: whoever waits for items is told
            heard, met, asked = time.monotonic(), True, None
            for line in lines:
                logger.warning("%s", line)
