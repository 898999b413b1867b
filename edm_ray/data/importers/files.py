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


def is_folder(uri: str) -> bool:
    return uris.is_folder(uri)


def list_tree(uri: str) -> dict[str, int]:
    """Relative path -> size of every file below a folder, in sorted order; hidden ones are left out. Links to folders
    are followed locally, each folder once."""
    sizes = dict(_walk(uri)) if not uris.is_remote(uri) else dict(uris.list_tree(uri))
    return {name: sizes[name] for name in sorted(sizes) if not is_hidden(name)}


def is_hidden(name: str) -> bool:
    """Files of the system, not of the data: `.DS_Store`, `._picture.jpg`, `__MACOSX/...`."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def _walk(uri: str) -> list[tuple[str, int]]:
    root = Path(uris.resolve(uri))
    found, seen = [], set()
    for folder, below, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(folder, name)
            if not path.exists():
                raise InputError(f"{path}: a link that leads nowhere; remove it or fix it")
            found.append((path.relative_to(root).as_posix(), path.stat().st_size))
    return found


def open_local(uri: str) -> IO[bytes]:
    """A file to seek in. One on S3 is fetched into a temporary file without a name, which goes with its handle."""
    if not uris.is_remote(uri):
        path = uris.resolve(uri)
        try:
            return Path(path).open("rb")
        except FileNotFoundError as error:
            raise InputError(f"{uri}: no such file (on this node)") from error
        except (IsADirectoryError, PermissionError) as error:
            raise InputError(f"{uri}: cannot be opened as a file: {error.strerror}") from error
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
