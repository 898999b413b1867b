"""The folder of a node's cache: where it is, how much it may hold, and what leaves it when room is needed.

Entries are ``KEY.pixels``, those being written ``.KEY.PID.RANDOM.part``; locks are flock, see `edm_ray.data.cache`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edm_ray.errors import InputError

logger = logging.getLogger(__name__)
DEFAULT_GIB = 64.0
ASKED = ".room-asked-for"


class CacheFull(InputError):
    """What is in use leaves no room."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder on a local disk, and how many bytes it may hold."""

    folder: Path
    limit: int


def open_cache(cache_dir: str | Path | None = None, cache_gib: float | None = None) -> Cache:
    """The node's cache: the arguments, else EDM_RAY_CACHE and EDM_RAY_CACHE_GIB, else ~/.cache/edm_ray and 64 GiB.

    Raises InputError when the folder cannot be written or the limit is not a positive number.
    """
    said = cache_gib if cache_gib is not None else os.environ.get("EDM_RAY_CACHE_GIB", DEFAULT_GIB)
    try:
        gib = float(said)
    except ValueError:
        gib = -1.0
    if not 0 < gib < float("inf"):
        raise InputError(f"EDM_RAY_CACHE_GIB (cache_gib) = {said!r}: a number of GiB above 0 is expected")
    folder = Path(cache_dir or os.environ.get("EDM_RAY_CACHE") or "~/.cache/edm_ray").expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "not writable")
    except OSError as error:
        raise InputError(f"{folder}: cannot be the cache: {error.strerror}; set EDM_RAY_CACHE to a folder") from error
    return Cache(folder=folder, limit=int(gib * 2**30))


def try_lock(handle: IO[bytes], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def space_is_said(cache: Cache, size: int, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        status = os.statvfs(cache.folder)
        raise InputError(
            f"{cache.folder}: no space left to cache {what}: {size / 2**30:.3g} GiB are needed, "
            f"{status.f_bavail * status.f_frsize / 2**30:.3g} GiB are free; free some, or set EDM_RAY_CACHE to a "
            "larger local disk"
        ) from error


def reserve(cache: Cache, handle: IO[bytes], size: int, what: str) -> None:
    """Room for ``size`` bytes below the limit, on disk at once: entries not in use go, least recently used first."""
    if size > cache.limit:
        raise InputError(
            f"{what}: {size / 2**30:.3g} GiB decoded, the cache {cache.folder} may hold {cache.limit / 2**30:.3g} GiB; "
            'raise cache_gib (EDM_RAY_CACHE_GIB), or read it with order="blocks"'
        )
    with (cache.folder / ".evict.lock").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _clear_dead_parts(cache, Path(handle.name))
        used = _files(cache)
        total = sum(status.st_size for status in used.values())
        for path, status in sorted(used.items(), key=lambda item: item[1].st_mtime_ns):
            if total + size <= cache.limit:
                break
            if path.suffix == ".pixels" and _evict(path):
                total -= status.st_size
        if total + size > cache.limit:
            raise CacheFull(
                f"{cache.folder}: holds {total / 2**30:.3g} GiB that are in use; {what} needs {size / 2**30:.3g} GiB "
                f"and the limit is {cache.limit / 2**30:.3g} GiB: raise cache_gib (EDM_RAY_CACHE_GIB), or wait"
            )
        if hasattr(os, "posix_fallocate"):  # so that a full disk is seen now, not after an hour of decoding
            os.posix_fallocate(handle.fileno(), 0, size)
        else:
            os.truncate(handle.fileno(), size)


def ask_for_room(cache: Cache) -> None:
    """WorkerRequest the processes of this node to let go of what they can do without."""
    (cache.folder / ASKED).write_text(f"{time.monotonic_ns()} {os.getpid()}")


def last_asked_for_room(cache: Cache) -> str:
    """Differs from what it was when somebody has asked since."""
    try:
        return (cache.folder / ASKED).read_text()
    except FileNotFoundError:
        return ""


def _files(cache: Cache) -> dict[Path, os.stat_result]:
    """Entries and parts. Looked at again when one was renamed or deleted meanwhile, so that none is missed."""
    while True:
        paths = [path for path in cache.folder.iterdir() if path.suffix in (".pixels", ".part")]
        with suppress(FileNotFoundError):
            return {path: path.stat() for path in paths}


def _evict(path: Path) -> bool:
    """Delete an entry unless a process has it mapped."""
    with suppress(FileNotFoundError), path.open("rb") as handle:
        if not try_lock(handle):
            return False
        path.unlink()
        logger.info("%s: left the cache to make room", path)
    return True


def _clear_dead_parts(cache: Cache, own: Path) -> None:
    """Parts whose writer is dead: nobody holds its lock."""
    for part in cache.folder.glob(".*.part"):
        match = re.fullmatch(r"\.(.+)\.\d+\.[0-9a-f]+\.part", part.name)
        if part == own or match is None:
            continue
        with (cache.folder / f".{match[1]}.lock").open("a+b") as held:
            if try_lock(held):
                part.unlink(missing_ok=True)
