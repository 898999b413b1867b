"""Files of a source, local or on S3: listed, opened for seeking, unpacked to a temporary file when they are gzipped."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

from edm_ray.errors import InputError
from edm_ray.storage import uris

GZIP_MAGIC = b"\x1f\x8b"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_ADVICE = "it is a Git LFS pointer, not the file itself; run: git lfs pull"


def is_folder(uri: str) -> bool:
    return uris.is_folder(uri)


def list_tree(uri: str) -> dict[str, int]:
    """Relative path -> size of every file below a folder, in sorted order; hidden ones are left out. Links to folders
    are followed locally, back to a folder above them excepted.

    Raises InputError for a folder that may not be read, a link that leads nowhere, and a folder that is found twice.
    """
    sizes = dict(_walk(uri)) if not uris.is_remote(uri) else dict(uris.list_tree(uri))
    return {name: sizes[name] for name in sorted(sizes) if not is_hidden(name)}


def is_hidden(name: str) -> bool:
    """Files of the system, not of the data: `.DS_Store`, `._picture.jpg`, `__MACOSX/...`."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def readable(name: str) -> str:
    """A name as text that can be printed and stored: bytes that are not UTF-8 are shown as ``\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def empty_folders(uri: str) -> list[str]:
    """Folders directly below a local one in which there is no file at any depth; hidden ones are left out."""
    if uris.is_remote(uri):
        return []
    root = Path(uris.resolve(uri))
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    return [folder.name for folder in folders if not any(names for _, _, names in os.walk(folder, followlinks=False))]


def _walk(uri: str) -> list[tuple[str, int]]:
    root = Path(uris.resolve(uri))
    found: list[tuple[str, int]] = []
    seen: dict[str, str] = {}

    def visit(folder: Path, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in above:
            return  # a link back to a folder above: all of it is listed already
        if real in seen:
            raise InputError(
                f"{readable(str(folder))} and {readable(seen[real])} are one folder by links: its files would come "
                "twice; remove one of the two"
            )
        seen[real] = str(folder)
        for entry in _entries(folder):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                visit(Path(entry.path), (*above, real))
                continue
            try:
                found.append((Path(entry.path).relative_to(root).as_posix(), entry.stat().st_size))
                if not entry.is_file():  # reading one may wait for ever
                    raise InputError(f"{readable(entry.path)}: is a pipe, socket or device, no file; remove it")
            except OSError as error:
                reason = "a link that leads nowhere" if entry.is_symlink() else error.strerror
                raise InputError(f"{readable(entry.path)}: {reason}; remove it or fix it") from error

    visit(root, ())
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{readable(str(folder))}: this folder cannot be read ({error.strerror}), so its files would be missing; "
            "allow it, or move it out of the source"
        ) from error


def open_local(uri: str) -> IO[bytes]:
    """A file to seek in. One on S3 is fetched into a temporary file without a name, which goes with its handle."""
    if not uris.is_remote(uri):
        path = uris.resolve(uri)
        try:
            return Path(path).open("rb")
        except FileNotFoundError as error:
            raise InputError(f"{uri}: no such file (on this node)") from error
        except OSError as error:
            raise InputError(f"{readable(uri)}: cannot be opened as a file: {error.strerror}") from error
    temporary = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the source
    try:
        uris.download(uri, temporary)
        temporary.flush()
    except OSError as error:
        temporary.close()
        _no_space(error, uri)
        raise
    temporary.seek(0)
    return temporary


def open_unpacked(uri: str) -> IO[bytes]:
    """Like `open_local`, and gunzipped when the file is gzipped (seen by its first bytes)."""
    handle = open_local(uri)
    magic = handle.read(2)
    handle.seek(0)
    if magic != GZIP_MAGIC:
        return handle
    with handle, gzip.GzipFile(fileobj=handle) as unpacked:
        try:
            return to_temporary(unpacked, uri)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{uri}: damaged gzip file: {error}") from error


def to_temporary(stream: Any, uri: str) -> IO[bytes]:
    """Copy a stream into a temporary file without a name. Raises InputError naming TMPDIR when the disk is full."""
    temporary = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the source
    try:
        shutil.copyfileobj(stream, temporary, 1 << 20)
        temporary.flush()
    except OSError as error:
        temporary.close()
        _no_space(error, uri)
        raise
    temporary.seek(0)
    return temporary


def _no_space(error: OSError, uri: str) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = tempfile.gettempdir()
        raise InputError(f"{uri}: no space left in {folder} to unpack it; set TMPDIR to a larger disk") from error


def lfs_hint(uri: str) -> str:
    """What to add to "not readable" when the file is a pointer that Git LFS left in place of its content."""
    if uris.is_remote(uri) or not Path(uris.resolve(uri)).is_file():
        return ""
    with Path(uris.resolve(uri)).open("rb") as handle:
        return f": {LFS_ADVICE}" if handle.read(len(LFS_POINTER)) == LFS_POINTER else ""
