"""Options of a task from keywords: what is no option, or not one of the values that it has, is refused in words."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from edm_ray.errors import InputError, nearest

Options = TypeVar("Options")


def read_options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """kind: a dataclass of options. Raises InputError naming the option, what was got and what is allowed."""
    types = typing.get_type_hints(kind)
    for name, value in given.items():
        if name not in types:
            known = ", ".join(types)
            raise InputError(f"{name}={value!r} is not allowed: no such option{nearest(name, types)}; known: {known}")
        allowed = _choices(types[name])
        if allowed and value not in allowed:
            close = nearest(str(value), map(str, allowed))
            raise InputError(f"{name}={value!r} is not allowed: {' or '.join(map(repr, allowed))}{close}")
    return kind(**given)


def _choices(hint: Any) -> tuple[Any, ...]:
    """Values of a Literal, and None where it may be left out; empty for other types."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    parts = typing.get_args(hint)
    chosen = [value for part in parts if typing.get_origin(part) is Literal for value in typing.get_args(part)]
    return (*chosen, None) if chosen and type(None) in parts else tuple(chosen)
