"""The options of a command as its dataclass says them: for completion and for the reference pages."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from edm_ray import cli


@dataclass(frozen=True, kw_only=True)
class Option:
    name: str
    """As it is typed: --num, or SOURCE for one that is given by its place."""
    values: tuple[str, ...]
    """Where they are a few words."""
    default: str | None
    """None: it must be given."""
    about: str
    positional: bool


def options_of(command: str) -> list[Option]:
    module = importlib.import_module(cli.module_name(command))
    return list(_options(module.Args))


def _options(kind: type) -> Iterator[Option]:
    """Of a command's dataclass, and of those inside of it."""
    hints, about = typing.get_type_hints(kind, include_extras=True), field_docs(kind)
    for each in dataclasses.fields(kind):
        hint, marks = hints[each.name], tuple[Any, ...]()
        if typing.get_origin(hint) is Annotated:
            hint, *rest = typing.get_args(hint)
            marks = tuple(rest)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _options(hint)
            continue
        positional = tyro.conf.Positional in marks or any("Positional" in repr(mark) for mark in marks)
        named = next((mark.name for mark in marks if getattr(mark, "name", None)), each.name)
        yield Option(
            name=each.name.upper() if positional else f"--{named.replace('_', '-')}",
            values=_words(hint),
            default=default_text(each),
            about=about.get(each.name, ""),
            positional=positional,
        )


def _words(hint: Any) -> tuple[str, ...]:
    parts = [hint, *typing.get_args(hint)]
    literals = [part for part in parts if typing.get_origin(part) is Literal]
    return tuple(str(word) for part in literals for word in typing.get_args(part) if word is not None)


def default_text(field: dataclasses.Field[Any]) -> str | None:
    """As people type it; '' for none and nothing."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return None
    else:
        value = field.default
    return "" if value is None or value in ((), [], "") else str(value)


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _text(text):
                found[field.target.id] = " ".join(str(_text(text)).split())
    return found


def _text(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None
