"""Exceptions for people: one line with the path, what was got, what is allowed, and the fix."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

SHOWN = 120
"""Characters of a foreign value that a message repeats."""


class InputError(ValueError):
    """Something the user gave is wrong; the command line prints the message alone and exits with code 2."""


class IntegrityError(InputError):
    """Stored bytes are not what their manifest says (truncated, changed, half-written)."""


def shortened(value: object, limit: int = SHOWN) -> str:
    """``repr`` of a foreign value for a message: one line of at most ``limit`` characters."""
    bounded = reprlib.Repr()  # an alias bomb of YAML is small as an object and has a repr of gigabytes
    bounded.maxlevel, bounded.maxdict, bounded.maxlist, bounded.maxtuple, bounded.maxset = 4, 12, 12, 12, 12
    bounded.maxlong = bounded.maxother = limit
    try:
        text = repr(value[: limit + 1]) if isinstance(value, (str, bytes)) else bounded.repr(value)
    except (RecursionError, ValueError):  # an integer of more than 4,300 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def counted(number: int, one: str, several: str | None = None) -> str:
    """ "1 file", "2,000 files"; ``several``: the plural where it is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


PLAIN_NAME = "letters, digits, spaces and -_.+ only, at most 100: it becomes part of file names"


def plain_name(name: str) -> bool:
    """Whether a name may become part of a file's name: no folder, no control character."""
    return 0 < len(name) <= 100 and name.strip(". ") != "" and all(c.isalnum() or c in " -_.+" for c in name)


def require(condition: bool, path: str, got: object, allowed: str) -> None:
    """Refuse a value: dotted path, what was got, what is allowed."""
    if not condition:
        raise InputError(f"{path}={shortened(got)} is not allowed: {allowed}")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``' (did you mean X?)'`` for the closest of ``allowed``, or the empty string."""
    close = difflib.get_close_matches(name[:SHOWN], list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
