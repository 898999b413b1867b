"""The table of globals that a network file may name, each with a stand-in that only keeps data.

Written for what the pickles of Karras et al. 2022 hold: persistent objects (which normally run the source text they
carry), torch tensors and containers, NumPy scalars. Storage bytes are kept as views of the file: no tensor is made
here, so no claim about a size can take memory.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from edm_ray.errors import InputError
from edm_ray.models.interop.pickles import Budget, Holder, Inert, OrderedItems, checked_key, read_pickle, shown

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAX_DIMENSIONS = 8
# Written at the start of every file of torch's first format, which pickled storages still use.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True, eq=False)
class Storage:
    """Elements of one type: a view of the file's own bytes."""

    dtype: torch.dtype
    view: memoryview

    @property
    def numel(self) -> int:
        return len(self.view) // self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A tensor that has been described and checked against its storage, and not made yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of the storage between the first and the last one used."""
        if self.numel == 0:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def tensor(self) -> torch.Tensor:
        """A copy with memory of its own, contiguous."""
        if self.numel == 0:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        size = self.storage.dtype.itemsize
        content = bytearray(self.storage.view[self.offset * size : (self.offset + self.span) * size])
        flat = torch.frombuffer(content, dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


class Dtype:
    """A NumPy dtype by its code."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|"):
            raise InputError("a NumPy dtype that is not little-endian")


def scalar(dtype: object, content: object) -> float | int | bool:
    """``numpy.core.multiarray.scalar``: eight bytes or fewer as a plain number."""
    codes = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes) or dtype.code not in codes:
        raise InputError("a NumPy scalar that is not a plain number")
    code = codes[dtype.code]
    if len(content) != struct.calcsize(code):
        raise InputError(f"a NumPy scalar of {len(content)} bytes, its type has {struct.calcsize(code)}")
    value: float | int | bool = struct.unpack(code, content)[0]
    return value


def numpy_dtype(code: object, align: object = False, copy: object = True) -> Dtype:
    if not isinstance(code, str) or code not in ("f8", "f4", "i8", "i4", "b1"):
        raise InputError(f"NumPy dtype {shown(code)}, which no network has (objects are never read)")
    return Dtype(code)


def persistent_object(meta: object) -> Holder:
    """``torch_utils.persistence._reconstruct_persistent_obj``: the class's name and state; its source is dropped."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise InputError("a persistent object that is not a class")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 100:
        raise InputError(f"a persistent object with class name {shown(name)}")
    holder = Holder(name)
    holder.build(state)
    return holder


def rebuild_tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> TensorRecord:
    """``torch._utils._rebuild_tensor_v2``: what it claims is checked against the bytes that are there."""
    if not isinstance(storage, Storage) or hooks or metadata:
        raise InputError("a tensor without a storage of this file, or with hooks or metadata")
    if not _whole_numbers((offset,)) or not _whole_numbers(size) or not _whole_numbers(stride):
        raise InputError("a tensor whose offset, size or stride is not whole numbers of 0 or more")
    assert isinstance(offset, int) and isinstance(size, tuple) and isinstance(stride, tuple)
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise InputError(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
    record = TensorRecord(storage, offset, size, stride)
    if record.numel and (offset + record.span > storage.numel or record.numel > record.span):
        raise InputError(
            f"a tensor of shape {size} and stride {stride} at offset {offset}, but its storage holds "
            f"{storage.numel} elements"
        )
    return record


def _whole_numbers(values: object) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**40 for value in values)


def rebuild_parameter(data: object, requires_grad: object = True, hooks: object = None) -> TensorRecord:
    """``torch._utils._rebuild_parameter``: its data."""
    if not isinstance(data, TensorRecord) or hooks:
        raise InputError("a parameter that is not a tensor, or has hooks")
    return data


def ordered_dict(*arguments: object) -> OrderedItems:
    if arguments:
        raise InputError("an OrderedDict made from arguments")
    return OrderedItems()


def torch_size(size: object) -> tuple[int, ...]:
    if not _whole_numbers(size):
        raise InputError("a torch.Size that is not whole numbers of 0 or more")
    assert isinstance(size, tuple)
    return size


def storage_of(identity: object, find: Callable[[str], memoryview]) -> Storage:
    """The persistent id ("storage", type, key, location, numel[, None]) -> storage; ``find`` gives the key's bytes."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise InputError("a persistent id that is not a storage")
    _, dtype, key, location, numel, *views = identity
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or views not in ([], [None]):
        raise InputError("a storage of unknown type, or a view of another one")
    if not isinstance(location, str) or not _whole_numbers((numel,)):
        raise InputError("a storage whose place or number of elements is not one")
    view = find(key)
    if len(view) != numel * dtype.itemsize:
        raise InputError(f"a storage said to hold {numel * dtype.itemsize:,} bytes, {len(view):,} are there")
    return Storage(dtype, view)


def load_from_bytes(content: object, budget: Budget) -> Storage:
    """``torch.storage._load_from_bytes``: one storage in torch's first format, read by the same machine.

    Five pickles (magic number, version, system facts, the storage's persistent id, its key), then the number of
    elements as int64, then the elements. The view is of ``content`` itself.
    """
    if not isinstance(content, bytes):
        raise InputError("a storage that is not bytes")
    stream, allowed = io.BytesIO(content), storage_types()
    if [read_pickle(stream, allowed, budget) for _ in range(2)] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise InputError("a storage that is not in torch's format")
    facts = read_pickle(stream, allowed, budget)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise InputError("a storage that is not little-endian")
    identities: list[object] = []

    def keep(identity: object) -> object:
        identities.append(identity)
        return identity

    root = read_pickle(stream, allowed, budget, keep)
    keys = read_pickle(stream, allowed, budget)
    if len(identities) != 1 or root is not identities[0] or not isinstance(keys, list) or len(keys) != 1:
        raise InputError("a storage file that does not hold exactly one storage")
    start = stream.tell() + 8
    counted = content[start - 8 : start]

    def find(key: str) -> memoryview:
        if key != keys[0] or len(counted) != 8:
            raise InputError("a storage without its elements")
        return memoryview(content)[start:]

    storage = storage_of(root, find)
    if struct.unpack("<q", counted)[0] != storage.numel:
        raise InputError("a storage that states two different numbers of elements")
    return storage


def storage_types() -> dict[tuple[str, str], object]:
    return {("torch", name): dtype for name, dtype in STORAGES.items()}


def allowed_globals(budget: Budget) -> dict[tuple[str, str], object]:
    """(module, name) -> stand-in, for the whole of a network file. Everything else is refused."""

    def encode(text: object, codec: object = None) -> bytes:
        """``_codecs.encode``: how protocol 2 writes bytes."""
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise InputError("_codecs.encode of something other than text to latin1")
        budget.copy(len(text))
        return text.encode("latin1")

    def make_set(items: object = ()) -> set[object]:
        """``set``: how protocol 2 writes sets."""
        if not isinstance(items, (list, tuple)):
            raise InputError("a set that is not made from a list")
        budget.step(len(items))
        return {checked_key(item) for item in items}

    def load(content: object) -> Storage:
        return load_from_bytes(content, budget)

    def container(name: str) -> Inert:
        return Inert(name, new=lambda: Holder(name))

    functions: dict[tuple[str, str], Callable[..., Any]] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch.storage", "_load_from_bytes"): load,
        ("torch", "Size"): torch_size,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy._core.multiarray", "scalar"): scalar,
        ("numpy", "dtype"): numpy_dtype,
        ("_codecs", "encode"): encode,
        ("builtins", "set"): make_set,
        ("__builtin__", "set"): make_set,
    }
    table: dict[tuple[str, str], object] = {place: Inert(".".join(place), call) for place, call in functions.items()}
    table[("collections", "OrderedDict")] = Inert("collections.OrderedDict", ordered_dict, OrderedItems)
    table[("dnnlib.util", "EasyDict")] = Inert("dnnlib.util.EasyDict", new=OrderedItems)
    for name in ("ModuleDict", "ModuleList"):
        table[("torch.nn.modules.container", name)] = container(name)
    return {**table, **storage_types()}
