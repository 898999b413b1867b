"""A file of known hash from the web to a local path: resumed where it broke off, checked, and there whole or not at
all. Several processes that want the same file wait for the first."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.web import WebError, blocks, opened, public, stated_length

STALL_S = 30.0
"""A server that sends nothing for so long has broken off."""
TRIES = 4
"""Connections, those that take up where the last one broke included."""
WAIT_S = 1.0
"""Before the second connection; doubled before each further one."""
OnBytes = Callable[[int, int], None]
"""Called with (bytes that are there, bytes in all)."""


def no_bytes(done: int, total: int) -> None:
    """For callers who do not want to know."""


def sha256_of(path: Path) -> str:
    """Hash of a file, block by block."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def download(url: str, target: Path, sha256: str, size: int, on_bytes: OnBytes = no_bytes) -> None:
    """Have the file with this hash and size at ``target``; what is there and right is kept.

    A connection that breaks is taken up again, here and by the next call. Raises InputError when the file cannot be
    had, IntegrityError when the server has another one. Until it is whole and right its bytes lie in a hidden file
    beside ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if target.is_file() and target.stat().st_size == size and sha256_of(target) == sha256:
            return
        part = target.with_name(f".{target.name}.part")
        resumed = _fill(url, part, size, on_bytes)
        if (found := sha256_of(part)) != sha256 and resumed:
            part.unlink()  # what an earlier call left may be of another file
            _fill(url, part, size, on_bytes)
            found = sha256_of(part)
        if found != sha256:
            part.unlink()
            raise IntegrityError(
                f"{public(url)}: sha256 is {found}, expected {sha256}: not the published file (a proxy or a mirror may "
                "have changed it); nothing was kept"
            )
        part.replace(target)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time; the kernel frees the lock of one that dies."""
    with target.with_name(f".{target.name}.lock").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _fill(url: str, part: Path, size: int, on_bytes: OnBytes) -> bool:
    """Have ``size`` bytes in the part; True when some were there before."""
    with part.open("ab") as out:
        before = _size(out)
        if before > size:
            out.truncate(0)
        try:
            _persist(url, out, size, on_bytes)
        finally:
            if (done := _size(out)) == 0:
                part.unlink()
        os.fsync(out.fileno())
    return 0 < before <= done


def _persist(url: str, out: IO[bytes], size: int, on_bytes: OnBytes) -> None:
    """Connect until all bytes are there. Raises WebError after TRIES connections, or one that was refused for good."""
    for number in range(1, TRIES + 1):
        try:
            _connect(url, out, size, on_bytes)
            return
        except WebError as error:
            if number == TRIES or not error.passing:
                done = _size(out)
                kept = f" ({done:,} of {size:,} bytes are here; the same command resumes)" if done else ""
                raise WebError(f"{error}{kept}") from None
        time.sleep(WAIT_S * 2 ** (number - 1))


def _connect(url: str, out: IO[bytes], size: int, on_bytes: OnBytes) -> None:
    """One connection: the bytes that are missing, appended."""
    if (done := _size(out)) == size:
        return
    try:
        with opened(url, {"Range": f"bytes={done}-"} if done else {}, STALL_S) as response:
            if done and response.status != http.client.PARTIAL_CONTENT:
                out.truncate(0)  # this server begins again
                done = 0
            stated = stated_length(response)
            if stated is not None and done + stated != size:
                raise InputError(
                    f"{public(url)}: the server has {done + stated:,} bytes, expected {size:,}: not the published file"
                )
            on_bytes(done, size)
            for block in blocks(response, url):
                out.write(block[: size - done])
                done += len(block)
                on_bytes(min(done, size), size)
                if done >= size:
                    return
    except WebError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            out.truncate(0)
            raise WebError(str(error), passing=True) from None
        raise
    raise WebError(f"{public(url)}: the connection broke", passing=True)


def _size(out: IO[bytes]) -> int:
    out.flush()
    return os.fstat(out.fileno()).st_size
