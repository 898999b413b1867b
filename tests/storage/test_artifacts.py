"""The store of artefacts: what is there is whole and of these settings, or it counts as missing."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from edm_ray.errors import IntegrityError
from edm_ray.storage import artifacts
from edm_ray.storage.uris import NotFound

ARRAYS = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array([0.5, math.inf])}


@dataclass(frozen=True)
class Thing:
    kind = "thing"
    level: float

    @property
    def identity(self) -> dict[str, Any]:
        return {"level": artifacts.plain(self.level)}


@pytest.fixture
def store(tmp_path):
    artifacts.write(str(tmp_path), Thing(1.0), ARRAYS, made_on="here")
    return str(tmp_path)


def test_what_was_written_is_read(store):
    content = artifacts.read(store, Thing(1.0))
    assert content.notes == {"made_on": "here"} and content.arrays.keys() == ARRAYS.keys()
    assert all(np.array_equal(content.arrays[name], array) for name, array in ARRAYS.items())
    artifacts.write(store, Thing(math.inf), {}, said="no arrays")
    assert artifacts.read(store, Thing(math.inf)).notes == {"said": "no arrays"}


def test_equal_artefacts_have_equal_bytes(store, tmp_path):
    path = Path(artifacts.path_of(store, Thing(1.0)))
    code = (
        "import sys, numpy as np; from edm_ray.storage import artifacts; from tests.storage.test_artifacts import *; "
        "artifacts.write(sys.argv[1], Thing(1.0), dict(reversed(ARRAYS.items())), made_on='here')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True)
    assert Path(artifacts.path_of(str(tmp_path / "other"), Thing(1.0))).read_bytes() == path.read_bytes()


def test_only_what_is_not_there_is_missing(store):
    things = [Thing(1.0), Thing(2.0), Thing(math.inf)]
    assert artifacts.missing(store, things) == things[1:]
    assert artifacts.exists(store, things[0]) and not artifacts.exists(store, things[1])
    with pytest.raises(NotFound):
        artifacts.read(store, things[1])


@pytest.mark.parametrize("step", range(3))
def test_a_flipped_bit_anywhere_never_gives_other_content(store, step):
    path = Path(artifacts.path_of(store, Thing(1.0)))
    whole = path.read_bytes()
    for index in range(step, len(whole), 3):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 2]) + whole[index + 1 :])
        with contextlib.suppress(IntegrityError):  # a byte of no meaning changes nothing
            content = artifacts.read(store, Thing(1.0))
            assert content.notes == {"made_on": "here"} and content.arrays.keys() == ARRAYS.keys()
            assert all(np.array_equal(content.arrays[name], array) for name, array in ARRAYS.items())


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_a_truncated_file_is_named_counts_as_missing_and_is_overwritten(store, cut, caplog):
    path = Path(artifacts.path_of(store, Thing(1.0)))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    assert artifacts.missing(store, [Thing(1.0)]) == [Thing(1.0)]
    assert str(path) in caplog.text and "it is made again" in caplog.text
    artifacts.write(store, Thing(1.0), ARRAYS, made_on="here")
    assert artifacts.is_stored(store, Thing(1.0))


def test_other_settings_and_other_formats_are_refused_in_words(store):
    path = Path(artifacts.path_of(store, Thing(1.0)))
    other = Path(artifacts.path_of(store, Thing(2.0)))
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(path.read_bytes())
    with pytest.raises(IntegrityError, match="holds a thing of other settings; delete it and run again"):
        artifacts.read(store, Thing(2.0))
    header = json.dumps({"format": 0, "identity": {}, "notes": {}, "sha256": ""})
    other.write_bytes(safetensors.numpy.save({}, metadata={artifacts.HEADER: header}))
    with pytest.raises(IntegrityError, match="a thing of format 0, this version reads 1"):
        artifacts.read(store, Thing(2.0))
