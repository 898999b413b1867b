"""Hostile pickles: nothing they name is looked up, nothing they hold runs."""

from __future__ import annotations

import collections
import os
import pickle

import numpy as np
import pytest

from edm_ray.data.importers.unpickle import load_plain
from edm_ray.errors import InputError


class _Runs:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_tables_lists_and_arrays_are_read_in_every_protocol(protocol):
    value = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], "t": ("x", None, 1.5, True)}
    read = load_plain(pickle.dumps(value, protocol=protocol), "x")
    assert np.array_equal(read[b"data"], value[b"data"]) and read[b"labels"] == [1, 2]
    assert read["t" if "t" in read else b"t"][1:] == (None, 1.5, True)


@pytest.mark.parametrize("dtype", ["<i4", ">i2", "<f8", "u1", "?"])
def test_arrays_of_numbers_keep_type_order_and_layout(dtype):
    array = np.asfortranarray(np.arange(12).reshape(3, 4).astype(dtype))
    read = load_plain(pickle.dumps({"a": array}, protocol=2), "x")
    assert np.array_equal(next(iter(read.values())), array)


def test_a_pickle_of_python_2_as_in_the_published_archives_is_read():
    text = b"}q\x01(U\x06labelsq\x02]q\x03(K\x03K\x07eU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05"
    text += b"cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01"
    text += b"\x87Rq\x09(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\x02\xfd\xfe\xfftbu."
    read = load_plain(b"\x80\x02" + text, "x")
    assert read[b"labels"] == [3, 7] and read[b"data"].tolist() == [[0, 1, 2], [253, 254, 255]]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (_Runs(os.system, "touch {marker}"), r"posix\.system"),
        (_Runs(eval, "open('{marker}', 'w')"), r"(__builtin__|builtins)\.eval"),
        (_Runs(exec, "open('{marker}', 'w')"), r"(__builtin__|builtins)\.exec"),
        (_Runs(getattr, "x", "y"), r"(__builtin__|builtins)\.getattr"),
        (_Runs(np.load, "x"), r"numpy\.load"),
        (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (np.array([{}, []], object), "dtype 'O8' is refused"),
        ({1, 2}, r"set"),
        (_Runs(np.dtype, "O"), "dtype 'O' is refused"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_with_the_name_it_asks_for(tmp_path, value, named, protocol):
    marker = tmp_path / "ran"
    if isinstance(value, _Runs):
        value = _Runs(*[c.format(marker=marker) if isinstance(c, str) else c for c in value.call])
    with pytest.raises(InputError, match=rf"batch: refused: the pickle .*{named}"):
        load_plain(pickle.dumps({"data": value}, protocol=protocol), "batch")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        # BUILD with a slot state, which would set an attribute on what stands for numpy.dtype.
        (b"\x80\x02cnumpy\ndtype\n(N}X\x08\x00\x00\x00functionX\x02\x00\x00\x00ox\x73tb.", "changes functions"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "not a readable pickle"),  # NEWOBJ
        (b"\x80\x02cnumpy\nndarray\n)R.", "not made directly"),
        (b"Pevil\n.", "objects outside of it"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x02\x85NK\x00U\x02abtb.", "array of objects"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.", "array without content"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R.", "latin1 only"),
        (b"\x82\x01.", "not a readable pickle"),  # EXT1: the extension registry
        (b"(ios\nsystem\n.", r"os\.system"),  # INST
        (b"\x80\x02}r\xff\xff\xff\x7f.", "numbers its memo"),  # would make room for 2^31 entries
        (b"", "not a readable pickle"),
        (b"\x80\x02}", "not a readable pickle"),
        (b"\x80\x02" + b"]" * 50 + b"a" * 49 + b".", "nested too deep"),
    ],
)
def test_tricks_with_opcodes_are_refused(content, says):
    with pytest.raises(InputError, match=says):
        load_plain(content, "x")


def test_nothing_of_one_pickle_reaches_the_next():
    hostile = b"\x80\x02cnumpy\ndtype\n}X\x08\x00\x00\x00functionX\x01\x00\x00\x00osb."
    with pytest.raises(InputError):
        load_plain(hostile, "x")
    assert load_plain(pickle.dumps({"a": np.zeros(2, np.uint8)}, protocol=2), "x")


def test_random_damage_gives_plain_data_or_an_error_for_people():
    rng = np.random.default_rng(0)
    whole = np.frombuffer(pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"labels": [1, 2]}, protocol=2), np.uint8)
    for _ in range(500):
        content = whole.copy()
        content[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
        try:
            load_plain(content.tobytes(), "x")
        except InputError as error:
            assert str(error).startswith("x: ")
