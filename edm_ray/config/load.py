"""From text to a validated configuration: preset < file < ``--set a.b=c``. Unknown keys name the nearest known one.

Files, ``--set`` and JSON are flat, ``denoiser.preconditioning: {kind: vp, beta_d: 5}``; the class of that kind is made
here.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from edm_ray.config.kinds import kinds_of
from edm_ray.config.text import MAX_DEPTH, parse_value, read_yaml
from edm_ray.errors import SHOWN, InputError, nearest, shortened
from edm_ray.storage.versioned import FORMAT, check_format

T = TypeVar("T")


class OverrideError(InputError):
    """What ``--set`` gave is wrong, or with it the whole; another preset does not repair that."""


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["ema.halflife_kimg=50"]`` -> nested mapping; values are YAML."""
    result: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise InputError(f"--set {_brief(pair)}: expected KEY=VALUE, for example --set ema.halflife_kimg=50")
        *parents, leaf = path.split(".")
        if len(parents) > MAX_DEPTH or not all([*parents, leaf]):
            raise InputError(f"--set {_brief(pair)}: {_brief(path)} is no key")
        level = result
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise InputError(f"--set {_brief(pair)}: {_brief(parent)} was already given a plain value")
        level[leaf] = parse_value(text, f"--set {_brief(pair)}")
    return result


def _brief(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def merge(
    base: Mapping[str, Any], change: Mapping[str, Any], source: str, path: str = "", whole: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Lay ``change`` over ``base``; only keys that ``base`` has are allowed. whole: what ``base`` is a part of, at
    ``path``."""
    merged, whole = dict(base), whole or base
    for key, value in change.items():
        where = f"{path}{key}"
        if key not in base:
            here = nearest(str(key), base) if path else ""
            close = _elsewhere(str(key), whole) or here or _elsewhere(str(key), whole, exact=False)
            raise InputError(f"{source}: unknown key {shortened(where)}{close}; known here: {', '.join(sorted(base))}")
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise InputError(f"{source}: {where} holds several settings, got {shortened(value)}; use {where}.NAME")
            value = merge(base[key], value, source, f"{where}.", whole)
        merged[key] = value
    return merged


def _elsewhere(name: str, tree: Mapping[str, Any], exact: bool = True) -> str:
    """``' (did you mean optimizer.lr?)'`` for ``lr``: paths of which the last part is the name, or like it."""
    paths = _paths(tree)
    last = {path.rpartition(".")[2] for path in paths}
    wanted = {name} if exact else set(difflib.get_close_matches(name[:SHOWN], sorted(last), n=1))
    found = [path for path in paths if path.rpartition(".")[2] in wanted]
    return f" (did you mean {' or '.join(map(repr, found[:3]))}?)" if found else ""


def _paths(tree: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted paths of all keys, those of the upper levels first."""
    below = [
        deeper for key, value in tree.items() if isinstance(value, Mapping) for deeper in _paths(value, f"{path}{key}.")
    ]
    return [*(f"{path}{key}" for key in tree), *below]


def validate(cls: type[T], mapping: Mapping[str, Any], source: str, path: str = "") -> T:
    """Mapping -> instance of a configuration class, types converted ("1e-3" is a number); InputError otherwise.

    A class with kinds takes the flat form and gives the class that ``kind`` names. ``path`` is where in the file it is.
    """
    values = dict(mapping)
    made: Any = cls
    if family := kinds_of(cls):
        made = _in(source, family.class_of, values, path.rstrip("."))
        values.pop("kind", None)
    elif dataclasses.is_dataclass(cls):
        known = [entry.name for entry in dataclasses.fields(cls) if entry.init]
        if unknown := [name for name in values if name not in known]:
            close = nearest(str(unknown[0]), known)
            raise InputError(
                f"{source}: unknown key {shortened(f'{path}{unknown[0]}')}{close}; known here: {', '.join(known)}"
            )
    _refuse_bools(made, values, source, path)
    for name, part in _parts(made).items():
        if isinstance(values.get(name), Mapping):
            values[name] = validate(part, values[name], source, f"{path}{name}.")
    try:
        result: T = _adapter(made).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        where = path + ".".join(str(step) for step in first["loc"])
        if first["type"] == "value_error":
            raise InputError(f"{source}: {message}") from error
        raise InputError(f"{source}: {where}={shortened(first.get('input'))}: {message}") from error
    return result


@lru_cache(maxsize=256)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    """Making one takes a tenth of a second."""
    return TypeAdapter(cls)


def _refuse_bools(made: object, values: Mapping[str, Any], source: str, path: str) -> None:
    """True is no number, though Python takes it for 1."""
    if not (isinstance(made, type) and dataclasses.is_dataclass(made)):
        return
    hints = get_type_hints(made)
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else (value,)
        if name in hints and any(isinstance(each, bool) for each in several) and not _takes_bool(hints[name]):
            raise InputError(f"{source}: {path}{name}={shortened(value)} is not allowed: true and false are no numbers")


def _takes_bool(hint: Any) -> bool:
    return hint in (bool, Any, object) or any(_takes_bool(part) for part in get_args(hint))


def _in(source: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's result; its InputError names the source."""
    try:
        return call(*arguments)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _parts(cls: object) -> dict[str, type]:
    """Fields of a configuration class that are configurations themselves, with their classes."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return {}
    hints = get_type_hints(cls).items()
    return {name: hint for name, hint in hints if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def lay_over(cls: type, base: Mapping[str, Any], change: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`merge` for a class whose parts have kinds: another ``kind`` brings its own fields and drops the old kind's."""
    return merge(_switched(cls, base, change, source), change, source)


def _switched(
    cls: type, base: Mapping[str, Any], change: Mapping[str, Any], source: str, path: str = ""
) -> dict[str, Any]:
    """``base`` with the fields of the kinds that ``change`` names. Raises InputError for fields of other kinds."""
    result = dict(base)
    for name, part in _parts(cls).items():
        here, asked = f"{path}{name}", change.get(name)
        if not isinstance(asked, Mapping) or not isinstance(base.get(name), Mapping):
            continue
        if family := kinds_of(part):
            kind = asked.get("kind", base[name]["kind"])
            if kind != base[name]["kind"]:
                result[name] = _in(source, family.switched, base[name], kind, here)
            _in(source, family.class_of, {**asked, "kind": kind}, here)
        else:
            result[name] = _switched(part, base[name], asked, source, f"{here}.")
    return result


def configure(base: T, file: str | None = None, overrides: Sequence[str] = ()) -> T:
    """A preset with a YAML file and ``--set`` pairs laid over it."""
    mapping = dataclasses.asdict(base)  # type: ignore[call-overload]
    source = "configuration"
    if file is not None:
        if not Path(file).is_file():
            raise InputError(f"{file}: no such configuration file")
        content = read_yaml(file)
        check_format(content.pop("format", FORMAT), file)
        mapping, source = lay_over(type(base), mapping, content, file), file
    if not overrides:
        return validate(type(base), mapping, source)
    try:
        return validate(type(base), lay_over(type(base), mapping, parse_overrides(overrides), "--set"), "--set")
    except InputError as error:
        raise OverrideError(str(error)) from error


def to_flat(config: object) -> dict[str, Any]:
    """The flat form: plain values that YAML and JSON hold, and `validate` takes back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    flat: dict[str, Any] = plain(dataclasses.asdict(config))  # type: ignore[call-overload]
    return flat


def to_yaml(config: object) -> str:
    """Readable text that `configure` takes back."""
    return yaml.safe_dump({"format": FORMAT, **to_flat(config)}, sort_keys=False)
