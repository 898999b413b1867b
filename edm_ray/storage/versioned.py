"""JSON files that carry a format version, under the key ``format``. Another version is refused in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris

FORMAT = 1
"""Of all files that do not count on their own."""


def check_format(version: object, source: str, fix: str = "", known: int = FORMAT) -> None:
    """Raises InputError, which ends with ``fix``, for another format version than the one that is read and written."""
    if version != known:
        allowed = f"this version of edm_ray reads format {known}"
        raise InputError(f"{source}: format={version!r} is not allowed: {allowed}{fix and '; '}{fix}")


def to_text(content: Mapping[str, Any], indent: int | None = None) -> str:
    """One object, its format first."""
    return json.dumps({"format": FORMAT, **content}, indent=indent)


def parse_object(text: bytes | str, source: str, fix: str = "") -> dict[str, Any]:
    """A JSON object, of whatever format. Raises IntegrityError for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{source}: not JSON ({error}){fix and '; '}{fix}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{source}: not a JSON object{fix and '; '}{fix}")
    return content


def from_text(text: bytes | str, source: str, fix: str = "") -> dict[str, Any]:
    """What `to_text` got. Raises IntegrityError for what is no JSON object, InputError for another format."""
    content = parse_object(text, source, fix)
    check_format(content.pop("format", None), source, fix)
    return content


def write_json(uri: str, content: Mapping[str, Any]) -> None:
    uris.write_bytes(uri, to_text(content, indent=1).encode())


def read_json(uri: str, fix: str = "") -> dict[str, Any]:
    """What `write_json` got. Raises NotFound, and as `from_text` does."""
    return from_text(uris.read_bytes(uri), uri, fix)
