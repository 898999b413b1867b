"""YAML of foreign origin, in files and in ``--set``: bounded before it is parsed; plain values with text keys come out.

Files here are a few KB. PyYAML takes a second for 100 KB, and far longer for text that is made to be slow.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from edm_ray.errors import InputError, shortened
from edm_ray.storage import uris
from edm_ray.storage.documents import shortened_error

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_VALUES = 10_000
"""With every alias written out."""
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|(?:^|\s)#[^\n]*', re.DOTALL)
_BRACKET = re.compile(r"[][{}]")
_DATE = "tag:yaml.org,2002:timestamp"


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which keys are texts given once, a date is a text, and every alias counts."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise InputError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise InputError(f"line {line}: key {shortened(key)} is not allowed: a text (quote it)")
            if key in seen:
                raise InputError(f"line {line}: key {shortened(key)} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_DATE, "tag:yaml.org,2002:int")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 010 as 8 and 1:30 as 90; here a whole number is decimal digits, and anything else a text.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)


def read_yaml(uri: str) -> dict[str, Any]:
    """A YAML file, local or on S3, as a mapping with text keys. Raises InputError."""
    return parse_yaml(uris.read_bytes(uri, MAX_BYTES), uri)


def parse_yaml(text: str | bytes, source: str) -> dict[str, Any]:
    """YAML text -> mapping with text keys; errors name the source and line. Builds plain values only."""
    value = _parse(text, source)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{source}: a mapping of keys to values is expected, got {type(value).__name__}")
    return value


def parse_value(text: str, source: str) -> Any:
    """One value of ``--set``."""
    return _parse(text, source)


def _parse(text: str | bytes, source: str) -> Any:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise InputError(f"{source}: {len(raw):,} bytes, at most {MAX_BYTES:,} are read")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    _check_depth(text, source)
    loader = None
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, {})
        return loader.construct_document(node)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InputError(f"{source}: not valid YAML: {shortened_error(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_depth(text: str, source: str) -> None:
    """By brackets: PyYAML's time grows with the square of their depth."""
    depth = 0
    for bracket in _BRACKET.finditer(_QUOTED.sub("", text)):
        depth = max(0, depth + (1 if bracket[0] in "[{" else -1))
        if depth > MAX_DEPTH:
            raise InputError(f"{source}: nested deeper than {MAX_DEPTH} levels")


def _weigh(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Number of values in a node with its aliases written out. Raises InputError when there are too many."""
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise InputError("an alias inside of what it stands for")
        return size
    known[id(node)] = None
    parts = node.value if isinstance(node, yaml.CollectionNode) else ()
    flat = (child for part in parts for child in (part if isinstance(part, tuple) else (part,)))
    total = 1 + sum(_weigh(child, known) for child in flat)
    if total > MAX_VALUES:
        raise InputError(f"more than {MAX_VALUES:,} values")
    known[id(node)] = total
    return total
