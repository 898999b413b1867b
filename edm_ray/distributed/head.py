"""Whether Ray's head is there: a process whose head is gone waits a minute for it, and is then ended by Ray, in Ray's
words. A line before that says what it means."""

from __future__ import annotations

import logging
import socket

import ray

logger = logging.getLogger(__name__)
ANSWERS_S = 3.0


class HeadWatch:
    """Looks, and says once that the head does not answer; again after it has answered."""

    def __init__(self) -> None:
        self.address = str(ray.get_runtime_context().gcs_address)
        self.said = False

    def answers(self) -> bool:
        """Whether something listens at the head's address."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S).close()
        except (OSError, ValueError):
            if not self.said:
                logger.warning(
                    "Ray's head at %s does not answer; if it does not come back, Ray ends this command within about a "
                    "minute, and the same command on a new cluster resumes",
                    self.address,
                )
            self.said = True
            return False
        self.said = False
        return True
