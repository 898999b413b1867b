"""Bytes of a file to import: a local path, ``s3://`` or ``https://``, with a limit on the size and an optional hash."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import IO

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris

MAX_BYTES = 8 * 2**30
"""The largest released file, a training state with Adam's moments, is about half of that."""
TIMEOUT_S = 60.0
SCHEMES = ("https",)
_BLOCK = 1 << 20


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


def public(source: str) -> str:
    """The source without what may be secret: a user name, a query."""
    if "://" not in source or source.startswith("s3://"):
        return source
    parts = urllib.parse.urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read(source: str, max_bytes: int) -> bytes:
    size = uris.file_size(source)
    if size is None:
        raise InputError(f"{source}: no such file")
    _check_size(source, size, max_bytes)
    return uris.read_bytes(source)


def _check_size(source: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputError(f"{source}: {size:,} bytes, allowed are {max_bytes:,}")


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Redirects may not leave TLS."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise InputError(
            f"{public(url)}: scheme {parts.scheme!r} is not supported; give a local path, s3://bucket/key or https://..."
        )
    if "@" in parts.netloc:
        raise InputError(f"{public(url)}: a URL with credentials in it is refused; download the file and give its path")


def _download(url: str, max_bytes: int) -> bytes:
    """Stream a URL into memory; certificates are checked, sizes compared."""
    _check_url(url)
    name = public(url)
    try:
        with urllib.request.build_opener(_SameSchemes()).open(url, timeout=TIMEOUT_S) as response:
            length = response.headers.get("Content-Length")
            stated = int(length) if length is not None and length.isdigit() else None
            if stated is not None:
                _check_size(name, stated, max_bytes)
            parts, size = [], 0
            while block := response.read(_BLOCK):
                parts.append(block)
                size += len(block)
                _check_size(name, size, max_bytes)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        raise InputError(f"{name}: the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{name}: could not be read: {str(error) or type(error).__name__}") from None
    if stated is not None and size != stated:
        raise IntegrityError(f"{name}: {size:,} of {stated:,} bytes arrived; run the command again")
    return b"".join(parts)
