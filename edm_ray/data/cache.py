"""Decoded images of a node in memory-mapped files: decoded once, by one process, and shared by all of the node.

One file an entry: pixels uint8 [N, C, H, W], labels int64 [N], a JSON trailer with the sha256 of each part. It appears
whole by rename, so a process that is killed leaves nothing that anyone would read; what it leaves is cleared by the
next writer. File locks (flock), which the kernel releases when a process dies: exclusive on ``.KEY.lock`` while an
entry is made, shared on the entry itself while it is mapped, so that eviction leaves it alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from edm_ray.data.eviction import Cache, reserve, space_is_said, try_lock
from edm_ray.data.format import Labels, Pixels
from edm_ray.errors import InputError, IntegrityError

logger = logging.getLogger(__name__)
STALL_S = 600.0
"""A writer that has not written for so long is taken for stuck, and those who wait for it give up."""
_MAGIC = b"edmcache"
_POLL_S = 0.02
Put = Callable[[int, Pixels, Labels], None]


class Entry:
    """One mapped file. Its shared lock lasts until `close`, or until the process ends."""

    def __init__(self, path: Path, handle: IO[bytes], shape: tuple[int, ...], parts: list[dict[str, object]]) -> None:
        self.path, self._handle, self._parts = path, handle, parts
        size = int(np.prod(shape))
        self._map = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
        self.images: Pixels = np.frombuffer(self._map, np.uint8, size).reshape(shape)
        self.labels: Labels = np.frombuffer(self._map, np.int64, shape[0], _labels_at(size))

    def announce(self, rows: Labels) -> None:
        """All of it is there."""

    def take(self, rows: Labels) -> tuple[Pixels, Labels]:
        """Copies of these rows. Read, not copied from the map: a page fault maps up to 2 MiB around a row, so that all
        of a large file would soon count as this process's memory, and a file cut meanwhile would kill the process.

        Raises IntegrityError when the file was cut.
        """
        assert len(rows) == 0 or 0 <= rows.min() <= rows.max() < len(self.images)
        images, row_bytes = np.empty((len(rows), *self.images.shape[1:]), np.uint8), self.images[0].nbytes
        fd = self._handle.fileno()
        into = images.reshape(-1).data
        for place, row in enumerate(rows.tolist()):
            target = into[place * row_bytes : (place + 1) * row_bytes]
            if os.preadv(fd, (target,), row * row_bytes) != row_bytes:
                raise self._cut()
        if os.fstat(fd).st_size < len(self._map):
            raise self._cut()
        return images, self.labels[rows]

    def _cut(self) -> IntegrityError:
        return IntegrityError(f"{self.path}: was cut while it was in use; delete it and run the same command again")

    def check(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Read it all and compare with the hashes. Raises IntegrityError naming the file; it is deleted."""
        row_bytes, base = int(np.prod(self.images.shape[1:])), _labels_at(self.images.size)
        fd = os.dup(self._handle.fileno())
        try:
            for part in self._parts:
                first, rows = int(str(part["first"])), int(str(part["rows"]))
                digest = hashlib.sha256()
                for start, length in ((first * row_bytes, rows * row_bytes), (base + 8 * first, 8 * rows)):
                    for offset in range(start, start + length, 1 << 20):
                        if stop():
                            return
                        digest.update(os.pread(fd, min(1 << 20, start + length - offset), offset))
                if digest.hexdigest() != part["sha256"]:
                    self.path.unlink(missing_ok=True)
                    raise IntegrityError(
                        f"{self.path}: rows {first}..{first + rows - 1} were changed on disk; this file of the cache "
                        "was deleted, run the same command again"
                    )
        finally:
            os.close(fd)

    def close(self) -> None:
        if not self._handle.closed:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            self._handle.close()


def entry(cache: Cache, key: str, shape: tuple[int, ...], what: str, fill: Callable[[Put], None]) -> Entry:
    """Map the entry ``key``; when it is not there, one process of the node makes it and the others wait.

    shape: (N, C, H, W). ``fill`` is given ``put(first_row, images, labels)``, which any thread may call, and puts every
    row once. ``what`` names the data set in messages. Raises InputError: no room in the cache or on its disk.
    """
    path = cache.folder / f"{key}.pixels"
    waited, lock = time.monotonic(), cache.folder / f".{key}.lock"
    while True:
        if (found := _open(path, shape)) is not None:
            return found
        with lock.open("a+b") as held:
            if try_lock(held):
                # Another process may have finished between the look and the lock.
                return _open(path, shape) or _make(cache, key, path, shape, what, fill)
        last = max([waited, *(time.monotonic() - (time.time() - t) for t in _written(cache, key))])
        if time.monotonic() - last > STALL_S:
            raise InputError(
                f"{path}: another process of this node holds {lock.name} and has written nothing for {STALL_S:.0f} s; "
                "end that process and run this one again"
            )
        time.sleep(_POLL_S)


def sound_entry(
    cache: Cache, key: str, shape: tuple[int, ...], what: str, fill: Callable[[Put], None], check_up_to: int
) -> Entry:
    """As `entry`, compared with its hashes when it is not larger than ``check_up_to`` bytes; made again, once, when it
    was changed on disk."""
    for again in (True, False):
        found = entry(cache, key, shape, what, fill)
        if found.images.nbytes > check_up_to:
            return found
        try:
            found.check()
        except IntegrityError as error:
            found.close()
            if not again:
                raise InputError(f"{error} (twice in a row: is the disk sound?)") from error
            logger.warning("%s", error)
        else:
            return found
    raise AssertionError("unreachable")


def _labels_at(pixel_bytes: int) -> int:
    return -(-pixel_bytes // 8) * 8


def _size(shape: tuple[int, ...]) -> int:
    """Bytes of an entry, without its trailer."""
    return _labels_at(int(np.prod(shape))) + 8 * shape[0]


def _written(cache: Cache, key: str) -> Iterator[float]:
    for part in cache.folder.glob(f".{key}.*.part"):
        with suppress(FileNotFoundError):
            yield part.stat().st_mtime


def _open(path: Path, shape: tuple[int, ...]) -> Entry | None:
    """The entry when it is there and whole in form; a file that is not is named and not used."""
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        status = os.fstat(handle.fileno())
        if status.st_nlink == 0:  # evicted between open and lock
            handle.close()
            return None
        trailer = os.pread(handle.fileno(), 16, max(0, status.st_size - 16))
        length = int.from_bytes(trailer[:8], "little")
        if trailer[8:] != _MAGIC or status.st_size != _size(shape) + length + 16:
            raise ValueError("of another size, or cut")
        about = json.loads(os.pread(handle.fileno(), length, _size(shape)))
        if about["shape"] != list(shape):
            raise ValueError(f"of shape {about['shape']}")
        os.utime(handle.fileno())  # when it was last used
        return Entry(path, handle, shape, about["parts"])
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s: not a whole entry of the cache (%s); it is made again", path, error)
        handle.close()
        return None
    except BaseException:
        handle.close()
        raise


def _make(cache: Cache, key: str, path: Path, shape: tuple[int, ...], what: str, fill: Callable[[Put], None]) -> Entry:
    """Write the entry under another name, make it durable, rename it. The caller holds the writer's lock."""
    part = cache.folder / f".{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"
    size, row_bytes = _size(shape), int(np.prod(shape[1:]))
    for old in cache.folder.glob(f".{key}.*.part"):
        old.unlink(missing_ok=True)
    parts: list[dict[str, object]] = []
    guard = threading.Lock()
    try:
        with space_is_said(cache, size, what), part.open("x+b") as handle:
            reserve(cache, handle, size, what)
            fd = handle.fileno()

            def put(first: int, images: Pixels, labels: Labels) -> None:
                pixels = memoryview(np.ascontiguousarray(images).reshape(-1).data)
                numbers = memoryview(np.ascontiguousarray(labels, np.int64).tobytes())
                digest = hashlib.sha256(pixels)
                digest.update(numbers)
                _pwrite(fd, pixels, first * row_bytes)
                _pwrite(fd, numbers, _labels_at(shape[0] * row_bytes) + 8 * first)
                with guard:
                    parts.append({"first": first, "rows": len(images), "sha256": digest.hexdigest()})

            fill(put)
            assert sum(int(str(p["rows"])) for p in parts) == shape[0], "every row is put once"
            about = json.dumps({"what": what, "shape": list(shape), "parts": parts}).encode()
            _pwrite(fd, memoryview(about + len(about).to_bytes(8, "little") + _MAGIC), size)
            os.fsync(fd)
            fcntl.flock(handle, fcntl.LOCK_SH)  # so that it is not evicted between here and its use
            part.replace(path)
            _sync_folder(cache.folder)
            if (made := _open(path, shape)) is None:
                raise IntegrityError(f"{path}: vanished or changed as soon as it was written: is the disk sound?")
            return made
    finally:
        part.unlink(missing_ok=True)


def _pwrite(fd: int, content: memoryview, offset: int) -> None:
    """All of it: pwrite may write a part, and 2 GiB at most."""
    while content:
        written = os.pwrite(fd, content[: 1 << 26], offset)
        content, offset = content[written:], offset + written


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
