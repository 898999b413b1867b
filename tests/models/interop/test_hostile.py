"""Hostile and damaged files: refused by name or reason, quickly, in little memory, with nothing executed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edm_ray.errors import InputError
from edm_ray.models.interop import import_pickle
from edm_ray.models.interop.containers import read_network_file
from edm_ray.models.interop.inert import allowed_globals
from edm_ray.models.interop.pickles import Budget
from tests.models.interop.foreign import (
    CASES,
    IMAGES,
    Persistent,
    canary_source,
    foreign_modules,
    snapshot,
    source_denoiser,
    training_state,
)


class Call:
    """Reduces to a call of ``function`` with ``arguments``, as a hostile file does."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def calls(module: str, name: str, *arguments: object, protocol: int = 4) -> bytes:
    """A pickle that calls module.name(*arguments), assembled by hand: nothing has to exist here."""
    packed = pickle.dumps(arguments, protocol=2)[2:-1]
    if protocol < 4:
        return b"\x80\x02" + f"c{module}\n{name}\n".encode() + packed + b"R."
    names = b"".join(b"X" + struct.pack("<I", len(text)) + text.encode() for text in (module, name))
    return b"\x80\x04" + names + b"\x93" + packed + b"R."


def refused(content: bytes, says: str, tmp_path: Path, megabytes: float | None = 40) -> str:
    """Importing ``content`` raises an InputError that says so, within seconds and this much memory; its message."""
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    if megabytes is not None:  # slows torch's own imports down a lot
        tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(InputError, match=says or None) as caught:
            import_pickle(str(path))
        if megabytes is not None:
            assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6 + 6 * len(content)
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 20
    assert not (tmp_path / "canary").exists()
    message = str(caught.value)
    assert message.startswith("hostile.pkl: ") and len(message) < 700 and message.isprintable()
    return message


FORBIDDEN = {
    "os.system": ("os", "system", "touch {canary}"),
    "posix.system": ("posix", "system", "touch {canary}"),
    "builtins.eval": ("builtins", "eval", "open({canary!r}, 'w')"),
    "builtins.exec": ("builtins", "exec", "open({canary!r}, 'w')"),
    "builtins.getattr": ("builtins", "getattr", "x", "upper"),
    "builtins.set.__class__": ("builtins", "set.__class__", "x"),
    "subprocess.Popen": ("subprocess", "Popen", "touch {canary}"),
    "torch.load": ("torch", "load", "{canary}"),
    "torch.storage.UntypedStorage.from_file": ("torch.storage", "UntypedStorage.from_file", "{canary}", True, 10),
    "torch.nn.modules.container.ModuleDict.forward": ("torch.nn.modules.container", "ModuleDict.forward"),
    "torch.nn.modules.container.torch.os.system": ("torch.nn.modules.container", "torch.os.system", "touch {canary}"),
    "torch.nn.modules.container.operator": ("torch.nn.modules.container", "operator"),
    "torch._utils._rebuild_wrapper_subclass": ("torch._utils", "_rebuild_wrapper_subclass"),
    "torch._utils._rebuild_parameter_with_state": ("torch._utils", "_rebuild_parameter_with_state"),
    "torch._utils._import_dotted_name": ("torch._utils", "_import_dotted_name", "os.system"),
    "torch._tensor._rebuild_from_type_v2": ("torch._tensor", "_rebuild_from_type_v2"),
    "numpy.core.multiarray._reconstruct": ("numpy.core.multiarray", "_reconstruct", "x", (0,), b"b"),
    "numpy.load": ("numpy", "load", "{canary}"),
    "collections.namedtuple": ("collections", "namedtuple", "x", "y"),
    "copyreg._reconstructor": ("copyreg", "_reconstructor"),
    "dnnlib.util.call_func_by_name": ("dnnlib.util", "call_func_by_name"),
    "torch_utils.persistence._src_to_module": ("torch_utils.persistence", "_src_to_module", "x"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", list(FORBIDDEN))
def test_a_global_off_the_list_is_refused_by_name(tmp_path: Path, name: str, protocol: int) -> None:
    module, attribute, *arguments = FORBIDDEN[name]
    canary = str(tmp_path / "canary")
    filled = [text.format(canary=canary) if isinstance(text, str) else text for text in arguments]
    message = refused(
        calls(module, attribute, *filled, protocol=protocol), "is not allowed in a network file", tmp_path
    )
    assert f"the global {name} is not allowed" in message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_is_refused_by_name_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"ema": Call(os.system, f"touch {tmp_path / 'canary'}")}, protocol=protocol)
    message = refused(content, r"the global (posix|os|nt)\.system", tmp_path)
    assert "nothing of the file was executed" in message


def test_the_hostile_file_does_run_where_pickle_loads_it(tmp_path: Path) -> None:
    """The canary can sing: the tests here would see an execution."""
    pickle.loads(calls("os", "system", f"touch {tmp_path / 'canary'}"))
    assert (tmp_path / "canary").exists()


def test_a_call_hidden_deep_in_an_official_file_is_refused(tmp_path: Path) -> None:
    evil = Call(os.system, f"touch {tmp_path / 'canary'}")
    for place in ({"_init_kwargs": {"img_resolution": evil}}, {"extra": [(evil,)]}):
        source = source_denoiser("vp")
        content = snapshot("vp", source, canary_source(tmp_path / "canary"), deep=place)
        message = refused(content, r"global (posix|os)\.system is not allowed", tmp_path)
        assert "nothing of the file was executed" in message


def with_globals(value: Callable[[], Any]) -> bytes:
    with foreign_modules():
        return pickle.dumps(value(), protocol=4)


def rebuild(storage: torch.storage.TypedStorage, *arguments: Any) -> Callable[[], Any]:
    return lambda: {"ema": Call(torch._utils._rebuild_tensor_v2, storage, *arguments)}


FLOATS = torch.zeros(4)._typed_storage()
GADGETS: dict[str, tuple[Callable[[], Any], str]] = {
    "a view past the end": (rebuild(FLOATS, 0, (5,), (1,), False, OrderedDict()), "storage holds 4 elements"),
    "a view from far away": (rebuild(FLOATS, 2**39, (1,), (1,), False, OrderedDict()), "storage holds 4 elements"),
    "a negative offset": (rebuild(FLOATS, -1, (1,), (1,), False, OrderedDict()), "not whole numbers"),
    "a negative stride": (rebuild(FLOATS, 0, (2,), (-1,), False, OrderedDict()), "not whole numbers"),
    "an expanded bomb": (rebuild(FLOATS, 0, (2**20, 2**20), (0, 0), False, OrderedDict()), "storage holds 4"),
    "many dimensions": (rebuild(FLOATS, 0, (1,) * 60, (1,) * 60, False, OrderedDict()), "60 dimensions"),
    "hooks": (rebuild(FLOATS, 0, (1,), (1,), False, OrderedDict(a=1)), "hooks"),
    "no storage": (rebuild("x", 0, (1,), (1,), False, OrderedDict()), "without a storage"),
    "too many arguments": (rebuild(FLOATS, *range(20)), "arguments that do not fit"),
    "a parameter of text": (lambda: Call(torch._utils._rebuild_parameter, "x", True, None), "not a tensor"),
    "storage bytes of nothing": (lambda: Call(torch.storage._load_from_bytes, b""), "truncated"),
    "storage bytes that call": (
        lambda: Call(torch.storage._load_from_bytes, calls("os", "system", "true")), r"global os\.system",
    ),
    "a storage in a zip": (lambda: Call(torch.storage._load_from_bytes, b"PK\x03\x04"), "not a pickle"),
    "a size of text": (lambda: Call(torch.Size, "x"), "torch.Size"),
    "a dtype of objects": (lambda: Call(np.dtype, "O8", False, True), "NumPy dtype O8"),
    "an array of objects": (lambda: np.array([{}], dtype=object), r"multiarray\._reconstruct is not allowed"),
    "a set of huge numbers": (lambda: {2**61}, "huge int as key"),
    "a dictionary of tuples": (lambda: {(1, 2): 3}, "tuple as key"),
    "a container called": (
        lambda: Call(torch.nn.modules.container.ModuleDict), "calls ModuleDict, which is not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(GADGETS))
def test_allowed_globals_are_no_gadgets(tmp_path: Path, name: str) -> None:
    value, says = GADGETS[name]
    refused(with_globals(value), says, tmp_path)


def test_a_persistent_object_must_be_a_class_with_a_plain_state(tmp_path: Path) -> None:
    good = {"type": "class", "version": 6, "module_src": "", "class_name": "EDMPrecond", "state": {}}
    for change, says in (
        ({"type": "function"}, "not a class"),
        ({"class_name": "os.system"}, "class name os.system"),
        ({"class_name": 3}, "class name int"),
        ({"state": [1]}, "not one dictionary"),
        ({"state": {1: 2}}, "not one dictionary"),
    ):
        refused(calls("torch_utils.persistence", "_reconstruct_persistent_obj", {**good, **change}), says, tmp_path)


OPCODES = {
    "an extension of one byte": (b"\x82\x01.", "copyreg extension 1"),
    "an extension of four bytes": (b"\x84\x01\x00\x00\x00.", "copyreg extension 1"),
    "a persistent id as text": (b"Pwhere\n.", "persistent id where"),
    "a persistent id from the stack": (b"X\x01\x00\x00\x00aQ.", "persistent id a"),
    "INST": (b"(ios\nsystem\n.", r"opcode INST \(os\.system\)"),
    "OBJ": (b"(K\x01o.", "opcode OBJ"),
    "NEWOBJ of a function": (b"cbuiltins\nset\n)\x81.", "no known class"),
    "NEWOBJ with arguments": (b"ccollections\nOrderedDict\nK\x01\x85\x81.", "from arguments"),
    "BUILD on a dictionary": (b"}}b.", "sets the state of a dict"),
    "BUILD on a list": (b"]}b.", "sets the state of a list"),
    "BUILD with a tuple of slots": (b"ctorch.nn.modules.container\nModuleDict\n)\x81}}\x86b.", "not one dictionary"),
    "BUILD twice": (b"ctorch.nn.modules.container\nModuleDict\n)\x81}b}b.", "not one dictionary"),
    "REDUCE of a type": (b"ctorch\nFloatStorage\n)R.", "not a known function"),
    "REDUCE of text": (b"X\x01\x00\x00\x00a)R.", "not a known function"),
    "append to a dictionary": (b"}K\x01a.", "appends to a dict"),
    "items of a list": (b"]K\x01K\x02s.", "sets items of a list"),
    "an empty stack": (b"0.", "empty stack"),
    "a missing mark": (b"K\x01t.", "mark is missing"),
    "a memo entry that is not there": (b"h\x07.", "entry 7 of the memo"),
    "a huge memo index": (b"K\x01r\xff\xff\xff\xff0K\x02.", "holds a int"),
    "a bytearray of claims": (b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated"),
    "bytes that are not there": (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated"),
    "an unknown opcode": (b"\xff.", "truncated or not a pickle"),
    "two objects": (b"K\x01K\x02.", "does not end with one object"),
    "more after the end": (b"K\x01.more", "4 bytes follow"),
    "protocol 0 numbers": (b"I5\n.", "opcode INT"),
    "a global of numbers": (b"K\x01K\x02\x93.", "name is not text"),
    "a global of control characters": (b"c\x1b[31m\n\x07\n.", r"\\x1b\[31m"),
    "a global with a very long name": (b"c" + b"a" * 100_000 + b"\nb\n.", r"aaa\.\.\."),
}  # fmt: skip


@pytest.mark.parametrize("name", list(OPCODES))
def test_an_opcode_that_no_network_needs_is_refused(tmp_path: Path, name: str) -> None:
    body, says = OPCODES[name]
    refused(b"\x80\x04" + body, says, tmp_path)


def test_deep_nesting_is_refused_and_does_not_overflow_the_stack(tmp_path: Path) -> None:
    refused(b"\x80\x04" + b"(" * 100_000 + b".", "nested deeper", tmp_path)
    refused(b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b".", "nested too deep", tmp_path)
    inside_out = b"]\x94" + b"".join(b"](h\x00e\x940" for _ in range(10))
    refused(b"\x80\x04" + inside_out + b".", "", tmp_path)


def test_endless_work_is_refused(tmp_path: Path) -> None:
    refused(b"\x80\x04" + b"N0" * 600_000 + b"N.", "more than 1,000,000 steps", tmp_path, megabytes=None)


def test_a_list_doubled_many_times_costs_nothing_and_is_no_network(tmp_path: Path) -> None:
    """A billion laughs: 2^40 strings by reference."""
    value: Any = ["ha"]
    for _ in range(40):
        value = [value, value]
    for key in ("ema", "other"):
        refused(pickle.dumps({key: value}, protocol=4), "'ema' is a list|no network 'ema'", tmp_path)


def wrapped(state: dict[str, Any]) -> bytes:
    """A file whose network is a VPPrecond around a SongUNet with this state."""
    class_name, kwargs = CASES["vp"]
    model = Persistent("SongUNet", state, "")
    outer = {"_init_kwargs": kwargs, "_modules": {"model": model}, **IMAGES}
    return with_globals(lambda: {"ema": Persistent(class_name, outer, "")})


def test_modules_that_occur_twice_or_in_themselves_are_refused(tmp_path: Path) -> None:
    """Exponentially many names by reference, and endless ones."""
    laughs = torch.nn.ModuleDict()
    for _ in range(12):
        laughs = torch.nn.ModuleDict({"a": laughs, "b": laughs})
    loop, deep = torch.nn.ModuleDict(), torch.nn.ModuleDict()
    loop._modules["self"] = loop
    for _ in range(30):
        deep = torch.nn.ModuleDict({"a": deep})
    for bad, says in ((laughs, "occurs twice"), (loop, "occurs twice"), (deep, "nested deeper than 16")):
        refused(wrapped({"_modules": {"enc": bad}}), says, tmp_path)


def test_a_state_that_is_not_modules_and_tensors_is_refused(tmp_path: Path) -> None:
    for state, says in (
        ({"_modules": [1]}, "not a dictionary of plain names"),
        ({"_parameters": {"a.b": None}}, "not a dictionary of plain names"),
        ({"_parameters": {"w": "text"}}, "model.w is a str, not a tensor"),
        ({"_buffers": {"w": OrderedDict()}}, "model.w is a OrderedItems, not a tensor"),
        ({"_modules": {"enc": 3}}, "model.enc is a int, not a module"),
        ({"_parameters": {"w": torch.zeros(2)}}, r"tensor 'model.dec.*, it is missing \(\d+ in all\)"),
    ):
        refused(wrapped(state), says, tmp_path, megabytes=None)


def test_one_storage_used_by_many_tensors_is_a_bomb(tmp_path: Path) -> None:
    storage = torch.zeros(100_000)._typed_storage()
    view = (storage, 0, (100_000,), (1,), False, OrderedDict())
    tensors = {f"w{i}": Call(torch._utils._rebuild_tensor_v2, *view) for i in range(2000)}
    refused(wrapped({"_parameters": tensors}), "800,000,000 bytes.*decompression bomb", tmp_path)


@pytest.mark.parametrize("codec", ["copies", "sets"])
def test_copies_made_while_reading_are_counted(tmp_path: Path, codec: str) -> None:
    """Protocol 2 writes bytes and sets as calls; a megabyte encoded a hundred thousand times is refused early."""
    if codec == "copies":
        start = (
            b"X"
            + struct.pack("<I", 10**6)
            + b"a" * 10**6
            + b"q\x000X\x06\x00\x00\x00latin1q\x010c_codecs\nencode\nq\x020"
        )
        step = b"h\x02h\x00h\x01\x86R0"
    else:
        start = b"]q\x00(" + b"K\x01" * 50_000 + b"e0cbuiltins\nset\nq\x020"
        step = b"h\x02h\x00\x85R0"
    content = b"\x80\x02" + start + step * 100_000 + b"N."
    refused(content, "decompression bomb|more than 1,000,000 steps", tmp_path, megabytes=80)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    source = source_denoiser("vp")
    content = snapshot("vp", source) if kind == "pickle" else training_state("vp", source)
    refused(content[: int(len(content) * share)], "truncated|not a pickle", tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "starts with nothing"),
        (b"hello world", "not a pickle"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (gzip.compress(pickle.dumps({"ema": b"\0" * 10**8})), "gzip-compressed: unpack"),
        (b"\x80\x01.", "a pickle of protocol 0 or 1, refused"),
        (b"city\nname\nx", "not a pickle of protocol 2 to 5"),
    ],
    ids=["empty", "text", "web page", "git lfs", "gzip bomb", "protocol 1", "a table"],
)
def test_what_is_no_pickle_is_refused_by_what_it_is(tmp_path: Path, content: bytes, says: str) -> None:
    refused(content, says, tmp_path)


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as out:
        for name, content in files.items():
            out.writestr(name, content)
    return stream.getvalue()


def storage_pickle(numel: int, dtype: bytes = b"FloatStorage") -> bytes:
    pid = b"(X\x07\x00\x00\x00storagectorch\n" + dtype + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    return b"\x80\x02" + pid + b"J" + struct.pack("<i", numel) + b"tQ."


ARCHIVES = {
    "compressed": (archive({"a/data.pkl": b"\x80\x02N."}, zipfile.ZIP_DEFLATED), "is compressed"),
    "a zip bomb": (archive({"a/data.pkl": b"\0" * 10**8}, zipfile.ZIP_DEFLATED), "decompression bomb"),
    "no data.pkl": (archive({"x.txt": b""}), "torch.save did not write"),
    "two data.pkl": (archive({"a/data.pkl": b"", "b/data.pkl": b""}), "torch.save did not write"),
    "a call": (archive({"a/data.pkl": calls("os", "system", "true")}), r"global os\.system is not allowed"),
    "a storage that is missing": (archive({"a/data.pkl": storage_pickle(4)}), "storage 0 is not in the archive"),
    "a storage that is too short": (
        archive({"a/data.pkl": storage_pickle(2**30), "a/data/0": b"1234"}), "4,294,967,296 bytes, 4 are there",
    ),
    "a storage of unknown type": (
        archive({"a/data.pkl": storage_pickle(1, b"QUInt8Storage"), "a/data/0": b"1"}), "torch.QUInt8Storage",
    ),
    "big-endian": (archive({"a/data.pkl": storage_pickle(1), "a/byteorder": b"big"}), "not little-endian"),
    "a persistent id of another kind": (
        archive({"a/data.pkl": b"\x80\x02X\x01\x00\x00\x00aQ."}), "persistent id that is not a storage",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ARCHIVES))
def test_a_bad_zip_container_is_refused(tmp_path: Path, name: str) -> None:
    content, says = ARCHIVES[name]
    refused(content, says, tmp_path)


def test_a_changed_bit_in_a_stored_tensor_is_noticed(tmp_path: Path) -> None:
    content = bytearray(training_state("vp", source_denoiser("vp")))
    content[len(content) // 2] ^= 1
    path = tmp_path / "a.pt"
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="checksum differs"):
        import_pickle(str(path), key="net")


def test_an_archive_whose_list_of_files_is_too_long_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edm_ray.models.interop.containers.MAX_DIRECTORY_BYTES", 1000)
    content = archive({"a/data.pkl": b"\x80\x02N.", **{f"a/data/{i}": b"" for i in range(100)}})
    monkeypatch.setattr("zipfile.ZipFile", None)
    with pytest.raises(InputError, match="list of files"):
        read_network_file(content, "x")


def outcome(content: bytes, tmp_path: Path) -> str:
    (tmp_path / "fuzzed").write_bytes(content)
    try:
        import_pickle(str(tmp_path / "fuzzed"))
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 700
        return "refused"
    return "read"


def test_random_damage_is_refused_or_harmless_and_never_another_error(tmp_path: Path) -> None:
    content, rng = snapshot("vp", source_denoiser("vp")), random.Random(0)
    seen = set()
    for _ in range(40):
        damaged, at = bytearray(content), rng.randrange(len(content))
        if rng.random() < 0.5:
            damaged[at] ^= 1 << rng.randrange(8)
        else:
            damaged[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        seen.add(outcome(bytes(damaged), tmp_path))
    assert seen == {"refused", "read"}  # weights that changed are for sha256 to notice


def test_random_programs_of_allowed_globals_are_refused_and_never_another_error(tmp_path: Path) -> None:
    rng = random.Random(1)
    names = [f"c{module}\n{name}\n".encode() for module, name in allowed_globals(Budget(1, 1))]
    values = [b"K\x01", b"N", b"\x88", b"X\x02\x00\x00\x00f8", b"C\x08" + bytes(8), b"]", b"}", b"\x8f", b")", b"("]
    actions = [
        b"R",
        b"b",
        b"\x81",
        b"t",
        b"\x85",
        b"\x86",
        b"a",
        b"e",
        b"s",
        b"u",
        b"\x90",
        b"0",
        b"\x94",
        b"h\x00",
        b"Q",
    ]
    for _ in range(1500):
        body = b"".join(rng.choice(rng.choice((names, values, actions))) for _ in range(rng.randrange(1, 25)))
        assert outcome(b"\x80\x04}X\x03\x00\x00\x00ema" + body + b"s.", tmp_path) == "refused"
