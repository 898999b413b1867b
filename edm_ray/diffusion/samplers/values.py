"""What a setting of a sampler may be, and how it is written."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from edm_ray.errors import InputError


def require(condition: bool, name: str, got: object, allowed: str) -> None:
    """Refuse a setting: its name, what was got, what is allowed."""
    if not condition:
        raise InputError(f"sampler.{name}={got!r} is not allowed: {allowed}")


def is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Tuples as lists, as files have them."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def brief(value: Any) -> str:
    """As ``--set`` takes it, with six digits."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(brief, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
