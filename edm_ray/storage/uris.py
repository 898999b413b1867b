"""Paths and ``s3://`` URIs behind one set of functions (pyarrow file systems).

S3 takes its credentials, region and endpoint from the standard AWS variables (AWS_PROFILE, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import os
import uuid
from functools import lru_cache
from pathlib import Path

from pyarrow import fs as pafs

from edm_ray.errors import InputError


class NotFound(InputError):
    """There is no such file."""


@lru_cache(maxsize=32)
def _remote(uri_root: str) -> pafs.FileSystem:
    filesystem, _ = pafs.FileSystem.from_uri(uri_root)
    return filesystem


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """URI or local path -> (file system, path in it). Raises InputError for schemes other than s3 and file."""
    if not is_remote(uri):
        return pafs.LocalFileSystem(), str(Path(uri.removeprefix("file://")).expanduser().absolute())
    scheme, rest = uri.split("://", 1)
    if scheme != "s3":
        raise InputError(f"{uri}: scheme {scheme!r} is not supported; give a local path or s3://bucket/key")
    if "@" in rest.split("/", 1)[0]:
        raise InputError("an s3:// URI with credentials in it is refused; use AWS_PROFILE or an instance role instead")
    if not rest.strip("/"):
        raise InputError(f"{uri}: the bucket is missing; give s3://bucket/key")
    return _remote(f"s3://{rest.split('/', 1)[0]}"), rest.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def absolute(uri: str) -> str:
    """The same place, whatever the working directory (Ray workers have another one)."""
    return uri if is_remote(uri) else resolve(uri)[1]


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """Whole file. Raises InputError naming the path when it is not there."""
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise NotFound(f"{uri}: no such file") from error


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part (S3 puts are so by themselves)."""
    filesystem, path = resolve(uri)
    if is_remote(uri):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def list_names(uri: str) -> list[str]:
    """Names directly under a directory, sorted; empty when there is none. Parts of interrupted writes are left out."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if not info.base_name.startswith("."))


def delete_directory(uri: str) -> None:
    filesystem, path = resolve(uri)
    if exists(uri):
        filesystem.delete_dir(path)
