"""Paths and ``s3://`` URIs behind one set of functions. S3 goes through `edm_ray.storage.s3` and nothing else."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import s3
from edm_ray.storage.s3 import NotFound, StorageError

__all__ = [
    "NotFound",
    "StorageError",
    "absolute",
    "clear_unfinished",
    "create_bytes",
    "delete",
    "delete_directory",
    "download",
    "exists",
    "file_size",
]
__all__ += ["is_folder", "is_remote", "join", "list_names", "list_tree", "may_write", "modified", "naming"]
__all__ += ["read_bytes", "refuse_link_out", "resolve", "touch", "write_bytes"]
logger = logging.getLogger(__name__)
_ALMOST = re.compile(r"(?:s3|gs|gcs|abfss?|az|hdfs|https?|file):(?!//)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")
PART_AGE_S = 60.0
"""Younger parts of local files may still be written."""
guards: dict[str, Callable[[], None]] = {}
"""Folder -> what is asked before each write or deletion below it; it raises where this process may write there no more
(`edm_ray.storage.lease`)."""


def may_write(path: str) -> None:
    """Ask the guards of the folders that a resolved path lies in; what they raise goes through."""
    for folder, guard in list(guards.items()):
        if path == folder or path.startswith(f"{folder}/"):
            guard()


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> str:
    """URI or local path -> absolute local path, or ``s3://bucket/key``. Raises InputError for other schemes, and for
    what is nearly one."""
    if "\0" in uri or not uri:
        raise InputError(f"{uri!r}: not a path; give a local path or s3://bucket/key")
    if (almost := _ALMOST.match(uri)) and not uri.startswith(("s3://", "file://")):
        raise InputError(f"{uri}: {almost[0]!r} is no path and no URI; give s3://bucket/key, or ./{uri} for a path")
    if not is_remote(uri):
        return str(Path(uri.removeprefix("file://")).expanduser().absolute())
    scheme, rest = uri.split("://", 1)
    if scheme != "s3":
        raise InputError(f"{uri}: scheme {scheme!r} is not supported; give a local path or s3://bucket/key")
    if "@" in rest.split("/", 1)[0]:
        raise InputError("an s3:// URI with credentials in it is refused; use AWS_PROFILE or an instance role instead")
    if not (bucket := rest.split("/", 1)[0]):
        raise InputError(f"{uri}: the bucket is missing; give s3://bucket/key")
    if not _BUCKET.fullmatch(bucket):
        raise InputError(f"{uri}: {bucket!r} is no name of a bucket: 3 to 255 letters, digits, dots, dashes and _")
    return f"s3://{rest.rstrip('/')}"


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def absolute(uri: str) -> str:
    """The same place, whatever the working directory (Ray workers have another one)."""
    return uri if is_remote(uri) and resolve(uri) else resolve(uri)


def check_writable(uri: str) -> None:
    """Raises InputError where nothing can be written, before there is anything to write: no permission, a file in the
    way of a folder, an S3 endpoint that is none or does not answer."""
    path = resolve(uri)
    if is_remote(uri):
        s3.check_endpoint(uri)
        return
    place = Path(path)
    try:
        there = place.exists()
        while not place.exists():
            place = place.parent
    except OSError as error:
        raise InputError(f"{uri}: cannot be written: {error.strerror}") from error
    if not there and not place.is_dir():
        raise InputError(f"{uri}: cannot be written: {place} is a file, not a folder")
    effective = os.access in os.supports_effective_ids
    if not os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0), effective_ids=effective):
        raise InputError(f"{uri}: cannot be written: {place} may not be written to by this user")
    if any(len(os.fsencode(part)) > 255 for part in Path(path).parts) or len(os.fsencode(path)) > 4000:
        raise InputError(f"{path[:100]}...: cannot be written: the name is too long")


def exists(uri: str) -> bool:
    """Whether there is a file or a folder."""
    path = resolve(uri)
    if not is_remote(uri):
        return Path(path).exists()
    return file_size(uri) is not None or s3.is_folder(path)


def is_folder(uri: str) -> bool:
    path = resolve(uri)
    return s3.is_folder(path) if is_remote(uri) else Path(path).is_dir()


def file_size(uri: str) -> int | None:
    """Bytes of a file; None when there is no file."""
    path = resolve(uri)
    if is_remote(uri):
        return s3.size(path) if s3.split(path)[1] else None
    return Path(path).stat().st_size if Path(path).is_file() else None


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """Whole file. Raises NotFound (an InputError) naming the path when it is not there, IntegrityError when it is
    larger than ``limit`` bytes: then no more of it is read."""
    path = resolve(uri)
    if is_remote(uri):
        return s3.read(path, limit)
    try:
        with Path(path).open("rb") as handle:
            content = handle.read(-1 if limit is None else limit + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"{uri}: no such file") from error
    if limit is not None and len(content) > limit:
        raise IntegrityError(f"{uri}: {Path(path).stat().st_size:,} bytes, at most {limit:,} are expected")
    return content


def refuse_link_out(uri: str, name: str) -> None:
    """Raises InputError for a file of a local directory that is a link to another place."""
    if not is_remote(uri):
        folder = Path(resolve(uri))
        if (folder / name).is_symlink() and (folder / name).resolve().parent != folder.resolve():
            raise InputError(f"{join(uri, name)}: a link that leads out of the directory; put the file itself there")


def download(uri: str, sink: IO[bytes]) -> None:
    """A whole S3 object into a file, without holding it in memory."""
    s3.download(resolve(uri), sink)


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part (S3 puts are so by themselves)."""
    path = resolve(uri)
    may_write(path)
    if is_remote(uri):
        s3.write(path, content)
        return
    with _part(Path(path), content) as part:
        part.replace(path)


def create_bytes(uri: str, content: bytes) -> bool:
    """As `write_bytes`, but only where there is no file: of several writers one wins. False: there is one already."""
    path = resolve(uri)
    may_write(path)
    if is_remote(uri):
        return s3.write(path, content, only_new=True)
    with _part(Path(path), content) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            logger.warning("%s: no hard links here, so two writers at the same moment are not kept apart", uri)
            if Path(path).exists():
                return False
            part.replace(path)
    return True


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors of the system name the file: those of writing (a full disk) do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class _part:
    """Content in a file beside its target, durable; what is left of it goes at the end."""

    def __init__(self, target: Path, content: bytes) -> None:
        self.path, self.content = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part"), content
        self.target = target

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with naming(self.target), self.path.open("wb") as handle:
                handle.write(self.content)
                handle.flush()
                os.fsync(handle.fileno())
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


def touch(uri: str) -> None:
    """Make a file that is there as new as if it were written now. Raises NotFound, and never makes one locally."""
    path = resolve(uri)
    if is_remote(uri):
        s3.write(path, s3.read(path))
        return
    try:
        os.utime(path)
    except FileNotFoundError as error:
        raise NotFound(f"{uri}: no such file") from error


def modified(uri: str) -> tuple[float, float]:
    """(when a file was last written, now), both in seconds by the store's clock. Raises NotFound."""
    path = resolve(uri)
    if is_remote(uri):
        return s3.modified(path)
    try:
        return Path(path).stat().st_mtime, time.time()
    except FileNotFoundError as error:
        raise NotFound(f"{uri}: no such file") from error


def delete(uri: str) -> None:
    """Delete a file; one that is not there is no error."""
    path = resolve(uri)
    may_write(path)
    if is_remote(uri):
        s3.delete(path)
    else:
        Path(path).unlink(missing_ok=True)


def list_names(uri: str) -> list[str]:
    """Names directly under a directory, sorted; empty when there is none. Parts of interrupted writes are left out."""
    path = resolve(uri)
    if is_remote(uri):
        names: Iterator[str] = (name for name, _ in s3.listing(path))
    else:
        names = (item.name for item in Path(path).iterdir()) if Path(path).is_dir() else iter(())
    return sorted({name for name in names if not name.startswith(".")})


def list_tree(uri: str) -> list[tuple[str, int]]:
    """(relative path, bytes) of every file below an S3 prefix."""
    return [(name, size or 0) for name, size in s3.listing(resolve(uri), deep=True)]


def clear_unfinished(uri: str) -> None:
    """Remove what dead writers have left below a directory whose writer is this process: unfinished uploads, parts of
    files. It is housekeeping: what cannot be removed is logged."""
    path = resolve(uri)
    may_write(path)
    if is_remote(uri):
        try:
            if count := s3.abort_uploads(path):
                logger.info("%s: aborted %d unfinished uploads of earlier writers", uri, count)
        except (OSError, InputError) as error:
            logger.warning("%s: unfinished uploads may stay behind (%s)", uri, error)
        return
    for part in Path(path).rglob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > PART_AGE_S:
                part.unlink()


def delete_directory(uri: str) -> None:
    path = resolve(uri)
    may_write(path)
    if is_remote(uri):
        s3.delete_below(path)
        clear_unfinished(uri)
    elif Path(path).exists():
        for manifest in Path(path).rglob("manifest.json"):  # a half-deleted directory does not exist
            manifest.unlink()
        shutil.rmtree(path)
