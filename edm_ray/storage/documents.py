"""JSON of foreign origin: bounded before it is parsed, and an InputError in one line whatever is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from edm_ray.errors import InputError, shortened

MAX_BYTES = 256 << 20
"""Manifests and tables of labels grow with the data."""
SMALL_BYTES = 1 << 20
"""Everything else is written by hand or about one thing."""
MAX_DEPTH = 32
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[][{}]")


def load_json(content: bytes | str, where: str, limit: int = MAX_BYTES) -> Any:
    """Parsed JSON. Raises InputError naming ``where``: too large, nested too deep, not UTF-8, a key given twice, a
    number that is none."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if len(raw) > limit:
        raise InputError(f"{where}: {len(raw):,} bytes, at most {limit:,} are read")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_depth(raw, where)
    try:
        return json.loads(raw, object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and integers of too many digits are ValueErrors
        raise InputError(f"{where}: not JSON: {shortened_error(error)}") from error


def shortened_error(error: Exception) -> str:
    """An error's text in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _check_depth(raw: bytes, where: str) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", raw)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise InputError(f"{where}: nested deeper than {MAX_DEPTH} levels")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twin = next(key for number, (key, _) in enumerate(pairs) if key in {name for name, _ in pairs[:number]})
        raise ValueError(f"key {shortened(twin)} is given twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
