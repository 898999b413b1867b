"""One frozen dataclass a kind, one flat mapping in files: ``kind: vp`` says which class the other keys belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from edm_ray.errors import InputError, nearest, shortened

T = TypeVar("T")
_FAMILIES: dict[type, Kinds[Any]] = {}


class Kinds(Generic[T]):
    """The classes of one part of the configuration, by kind. ``base`` is the class that annotations name.

    shared: the class whose fields keep their values when another kind is chosen; None = no field does.
    """

    def __init__(self, part: str, base: type[T], classes: list[type[T]], shared: type | None = None) -> None:
        self.part = part
        self.classes: dict[str, type[T]] = {cls.kind: cls for cls in classes}  # type: ignore[attr-defined]
        self.shared = () if shared is None else _names(shared)
        _FAMILIES[base] = self

    def __call__(self, kind: str | None = None, **values: Any) -> T:
        """The object that a flat mapping says. Raises InputError for an unknown kind and for another kind's field."""
        flat = values if kind is None else {"kind": kind, **values}
        cls = self.class_of(flat, self.part)
        return cls(**values)

    def class_of(self, flat: Mapping[str, Any], path: str) -> type[T]:
        """The class of this mapping; the first class where it names no kind. ``path`` is for messages."""
        kind = flat.get("kind", next(iter(self.classes)))
        if not isinstance(kind, str) or kind not in self.classes:
            close = nearest(str(kind), self.classes)
            raise InputError(f"{path}.kind={shortened(kind)} is not allowed: {', '.join(self.classes)}{close}")
        known = _names(self.classes[kind])
        for name, value in flat.items():
            if name == "kind" or name in known:
                continue
            if owners := [other for other, cls in self.classes.items() if name in _names(cls)]:
                allowed = f"it belongs to {' and '.join(owners)}, the kind is {kind}"
                raise InputError(f"{path}.{name}={shortened(value)} is not allowed: {allowed}")
            close = nearest(str(name), known)
            raise InputError(f"unknown key '{path}.{name}'{close}; {kind} has: {', '.join(known)}")
        return self.classes[kind]

    def switched(self, flat: Mapping[str, Any], kind: object, path: str) -> dict[str, Any]:
        """The mapping as a start for another kind: its defaults, and of the old values those of shared fields."""
        cls = self.class_of({"kind": kind}, path)
        kept = {name: flat[name] for name in self.shared if name in _names(cls) and name in flat}
        return {**dataclasses.asdict(cls()), **kept}  # type: ignore[call-overload]


def _names(cls: type) -> tuple[str, ...]:
    return tuple(entry.name for entry in dataclasses.fields(cls) if entry.name != "kind")


def kinds_of(cls: object) -> Kinds[Any] | None:
    """The kinds of a base class; None where a class has none."""
    return _FAMILIES.get(cls) if isinstance(cls, type) else None
