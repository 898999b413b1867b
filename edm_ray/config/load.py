"""From text to a validated configuration: preset < file < ``--set a.b=c``. Unknown keys name the nearest known one."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from edm_ray.errors import InputError, nearest

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


def validate(cls: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Mapping -> instance of a configuration class, types converted ("1e-3" is a number); InputError otherwise."""
    try:
        return TypeAdapter(cls).validate_python(dict(mapping))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":
            raise InputError(f"{source}: {message}") from error
        raise InputError(f"{source}: {where}={first.get('input')!r}: {message}") from error


def require_format(content: Mapping[str, Any], known: int, source: str, fix: str) -> None:
    """Raises InputError when a file says that it is of another format than the one that is read here."""
    found = content.get("format", known)
    if found != known:
        raise InputError(f"{source}: format={found!r} is not allowed: this version reads format {known}; {fix}")


def configure(base: T, file: str | None = None, overrides: Sequence[str] = ()) -> T:
    """A preset with a YAML file and ``--set`` pairs laid over it."""
    mapping = dataclasses.asdict(base)  # type: ignore[call-overload]
    source = "configuration"
    if file is not None:
        if not Path(file).is_file():
            raise InputError(f"{file}: no such configuration file")
        mapping, source = merge(mapping, parse_yaml(Path(file).read_text(), file), file), file
    if overrides:
        mapping, source = merge(mapping, parse_overrides(overrides), "--set"), "--set"
    return validate(type(base), mapping, source)


def to_yaml(config: object) -> str:
    """Readable text that `configure` takes back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)  # type: ignore[call-overload]
