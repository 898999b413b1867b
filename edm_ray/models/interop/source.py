"""Bytes of a file to import: a local path, ``s3://`` or ``https://``, with a limit on the size and an optional hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris
from edm_ray.storage.web import blocks, opened, public, stated_length

MAX_BYTES = 8 * 2**30
"""The largest released file, a training state with Adam's moments, is about half of that."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file's bytes, hash and base name (never where it came from: that may hold names or tokens)."""

    content: bytes
    sha256: str
    name: str


def fetch(source: str, sha256: str | None = None, max_bytes: int = MAX_BYTES) -> Fetched:
    """Read a file of at most ``max_bytes``. Raises InputError, or IntegrityError when its sha256 is another one."""
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise InputError(f"--sha256 {sha256}: 64 hexadecimal digits are expected")
    if "://" in source and not source.startswith(("s3://", "file://")):
        content = _download(source, max_bytes)
    else:
        content = _read(source, max_bytes)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise IntegrityError(f"{public(source)}: sha256 is {found}, expected {sha256.lower()}: not the file asked for")
    return Fetched(content=content, sha256=found, name=public(source).rstrip("/").rsplit("/", 1)[-1])


def _read(source: str, max_bytes: int) -> bytes:
    size = uris.file_size(source)
    if size is None:
        raise InputError(f"{source}: no such file")
    _check_size(source, size, max_bytes)
    return uris.read_bytes(source)


def _check_size(source: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputError(f"{source}: {size:,} bytes, allowed are {max_bytes:,}")


def _download(url: str, max_bytes: int) -> bytes:
    """Stream a URL into memory; sizes are compared."""
    name = public(url)
    with opened(url) as response:
        stated = stated_length(response)
        if stated is not None:
            _check_size(name, stated, max_bytes)
        parts, size = [], 0
        for block in blocks(response, url):
            parts.append(block)
            size += len(block)
            _check_size(name, size, max_bytes)
    if stated is not None and size != stated:
        raise IntegrityError(f"{name}: {size:,} of {stated:,} bytes arrived; run the command again")
    return b"".join(parts)
