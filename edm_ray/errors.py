"""Exceptions for people: one line with the path, what was got, what is allowed, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong; the command line prints the message alone and exits with code 2."""


class IntegrityError(InputError):
    """Stored bytes are not what their manifest says (truncated, changed, half-written)."""


def require(condition: bool, path: str, got: object, allowed: str) -> None:
    """Refuse a value: dotted path, what was got, what is allowed."""
    if not condition:
        raise InputError(f"{path}={got!r} is not allowed: {allowed}")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``' (did you mean X?)'`` for the closest of ``allowed``, or the empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
