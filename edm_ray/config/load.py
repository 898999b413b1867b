"""From text to a validated configuration: preset < file < ``--set a.b=c``. Unknown keys name the nearest known one.

Files, ``--set`` and JSON are flat, ``denoiser.preconditioning: {kind: vp, beta_d: 5}``; the class of that kind is made
here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from edm_ray.config.kinds import kinds_of
from edm_ray.errors import InputError, nearest
from edm_ray.storage.versioned import FORMAT, check_format

T = TypeVar("T")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of a silent winner."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise InputError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """YAML text -> mapping with string keys; errors name the source and line. Builds plain values only."""
    try:
        value = yaml.load(text, _StrictLoader)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{source}: a mapping of keys to values is expected, got {type(value).__name__}")
    return value


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["ema.halflife_kimg=50"]`` -> nested mapping; values are YAML."""
    result: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise InputError(f"--set {pair}: expected KEY=VALUE, for example --set ema.halflife_kimg=50")
        *parents, leaf = path.split(".")
        level = result
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise InputError(f"--set {pair}: {parent} was already given a plain value")
        level[leaf] = yaml.safe_load(text)
    return result


def merge(base: Mapping[str, Any], change: Mapping[str, Any], source: str, path: str = "") -> dict[str, Any]:
    """Lay ``change`` over ``base``; only keys that ``base`` has are allowed."""
    merged = dict(base)
    for key, value in change.items():
        where = f"{path}{key}"
        if key not in base:
            known = ", ".join(sorted(base))
            raise InputError(f"{source}: unknown key {where!r}{nearest(str(key), base)}; known here: {known}")
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise InputError(f"{source}: {where} holds several settings, got {value!r}; use {where}.NAME")
            value = merge(base[key], value, source, f"{where}.")
        merged[key] = value
    return merged


def validate(cls: type[T], mapping: Mapping[str, Any], source: str, path: str = "") -> T:
    """Mapping -> instance of a configuration class, types converted ("1e-3" is a number); InputError otherwise.

    A class with kinds takes the flat form and gives the class that ``kind`` names. ``path`` is where in the file it is.
    """
    values = dict(mapping)
    made: Any = cls
    if family := kinds_of(cls):
        made = _in(source, family.class_of, values, path.rstrip("."))
        values.pop("kind", None)
    for name, part in _parts(made).items():
        if isinstance(values.get(name), Mapping):
            values[name] = validate(part, values[name], source, f"{path}{name}.")
    try:
        result: T = TypeAdapter(made).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        where = path + ".".join(str(step) for step in first["loc"])
        if first["type"] == "value_error":
            raise InputError(f"{source}: {message}") from error
        raise InputError(f"{source}: {where}={first.get('input')!r}: {message}") from error
    return result


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
        content = parse_yaml(Path(file).read_text(), file)
        check_format(content.pop("format", FORMAT), file)
        mapping, source = lay_over(type(base), mapping, content, file), file
    if overrides:
        mapping, source = lay_over(type(base), mapping, parse_overrides(overrides), "--set"), "--set"
    return validate(type(base), mapping, source)


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
