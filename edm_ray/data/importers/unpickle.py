"""Read pickles of foreign origin as data: dictionaries, lists, text, numbers and numeric arrays, nothing else.

Nothing that a pickle names is ever looked up or called. The few names an array needs are answered by stand-ins of this
file, which only record what they are given; every other name is refused and said.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from edm_ray.errors import InputError


class Refused(InputError):
    """The pickle asks for something that is not plain data."""


class _Call:
    """A callable that a pickle can only call: it has no attributes to set."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a pickle that changes functions is refused")


class _DType:
    """What was said of a dtype: kind and size, byte order from its state."""

    def __init__(self, code: Any) -> None:
        code = code.decode() if isinstance(code, bytes) else code
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code):
            raise Refused(f"dtype {str(code)[:40]!r} is refused: whole and floating-point numbers only")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
        order = order.decode() if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise Refused(f"byte order {str(order)[:20]!r} is refused")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """What was said of an array; made into one when all is read."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array of unknown layout is refused")
        _, shape, dtype, fortran, content = state
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused("an array of unknown shape is refused")
        if not isinstance(dtype, _DType) or not isinstance(content, bytes):
            raise Refused("an array of objects is refused")
        values = np.frombuffer(content, dtype.dtype)
        if values.size != int(np.prod(shape, dtype=object)):
            raise Refused(f"an array of shape {shape} with {values.size} values is refused")
        self.values = values.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("_codecs.encode is taken for bytes as latin1 only")
    return text.encode("latin1")


def _never(*arguments: Any) -> Any:
    raise Refused("numpy.ndarray is not made directly")


def _dtype(code: Any, *_: Any) -> _DType:
    return _DType(code)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _never,
            ("numpy", "dtype"): _dtype,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise Refused(f"names {module}.{name}, which is not plain data")
        return _Call(allowed[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("refers to objects outside of it")


def load_plain(content: bytes, where: str) -> Any:
    """Pickle -> dict, list, tuple, bytes, str, numbers, numpy arrays. Text of Python 2 comes as bytes.

    Raises InputError naming what was refused; nothing in the pickle runs.
    """
    try:
        _scan(content)
        return _plain(_Unpickler(io.BytesIO(content), encoding="bytes").load(), 0)
    except Refused as error:
        raise InputError(f"{where}: refused: the pickle {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles fail in many ways
        raise InputError(f"{where}: not a readable pickle: {error or type(error).__name__}") from error


def _scan(content: bytes) -> None:
    """Walk over the opcodes without running them: lengths must lie inside the file, and the memo may not be numbered
    beyond what is in it (the unpickler would make room for all of it first)."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count + 1:
            raise Refused(f"numbers its memo {argument} at its operation {count}")


def _plain(value: Any, depth: int) -> Any:
    if depth > 20:
        raise Refused("is nested too deep")
    if isinstance(value, _Array):
        if not hasattr(value, "values"):
            raise Refused("holds an array without content")
        return value.values
    if isinstance(value, dict):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, depth + 1) for item in value)
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise Refused(f"holds a {type(value).__name__}, which is not plain data")
