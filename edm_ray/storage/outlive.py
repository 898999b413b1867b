"""Local disks that are away or full for a while are outlived by time, as S3 is (`edm_ray.storage.s3`)."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.s3 import LONGEST_WAIT_S, SAY_S, StorageError, outlive_s

logger = logging.getLogger(__name__)
AWAY = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
AWAY |= {errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED}
"""A network file system whose server does not answer, a disk that is full or was mounted read-only."""


def outlived(write: Callable[[], None], what: str, tries: int = 1, first_wait_s: float = 0.5) -> None:
    """Call ``write`` until it works: again for `outlive_s` seconds where the disk is away or full, and ``tries`` times
    for any other OSError. What it waits for is said once a minute. Raises what the last call raised; at once what S3
    raises, which was asked for long enough."""
    began, said, attempt = time.monotonic(), 0.0, 0
    while True:
        attempt += 1
        try:
            return write()
        except (InputError, IntegrityError, StorageError):
            raise
        except OSError as error:
            away = time.monotonic() - began
            left = outlive_s() - away if error.errno in AWAY else 0.0
            if attempt >= tries and left <= 0:
                raise
            wait = min(LONGEST_WAIT_S, first_wait_s * 2 ** min(attempt - 1, 20))
            if not said or time.monotonic() - said > SAY_S:
                said = time.monotonic()
                until = f", for up to {left:.0f} s more" if left > 0 else f" in {wait:.1f} s"
                logger.warning("writing %s failed (%s); trying again%s", what, error.strerror or error, until)
        time.sleep(wait)
