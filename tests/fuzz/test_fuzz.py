"""Foreign bytes of every kind, changed at random: an InputError of one line or a value, never another error, within
10 s and 1 GiB. Short here; `make test-faults` tries FUZZ_EXAMPLES (5,000) inputs a kind.

Found inputs are kept by making them cases of a test beside the code that read them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edm_ray.cli.boundary import one_line
from edm_ray.config.load import configure, to_flat, to_yaml
from edm_ray.config.presets import DataShape, preset
from edm_ray.config.text import parse_yaml
from edm_ray.data.importers.detect import detect_kind, open_source
from edm_ray.data.importers.pictures import PictureOptions, to_pixels
from edm_ray.data.importers.source import SourceSpec
from edm_ray.data.importers.splits import choose_files, choose_folders
from edm_ray.data.importers.unpickle import load_plain
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.evaluation.moments import Moments
from edm_ray.models.directory import check_size, read_config
from edm_ray.models.interop.containers import read_network_file
from edm_ray.models.interop.fid_reference import read_fid_npz
from edm_ray.models.interop.nvlabs import chosen_network, network_config
from edm_ray.models.weights import tensors_of
from edm_ray.search.sampler_file import settings_from_yaml
from edm_ray.search.space import space_of
from edm_ray.storage.commit import SEAL, read_manifest, sealed
from tests.data.readers import make_dataset
from tests.data.sources import cifar_batch, make_tar, make_zip, picture, pixels_of, structs
from tests.models.interop.foreign import snapshot, source_denoiser
from tests.storage.test_sealed import CONFIG

SHORT, LONG = 20, int(os.environ.get("FUZZ_EXAMPLES", "5000"))
SECONDS, GIB = 10.0, 1 << 30
BASE = preset("digits", DataShape(resolution=8, channels=1, num_classes=10))
PNGS = [picture(image) for image in pixels_of(4, 3, 8)]
CHOOSE: list[Callable[..., object]] = [choose_files, choose_folders]
Read = Callable[[Any], object]


@contextmanager
def within_one_gib() -> Iterator[None]:
    """No more than 1 GiB of address space beyond what is mapped already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + GIB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def holds(read: Read, value: Any) -> None:
    """The claim: a value, or one InputError."""
    began = time.process_time()
    try:
        with within_one_gib():
            read(value)
    except InputError as error:
        assert len(str(error)) < 3000 and len(one_line(str(error))) <= 2000, str(error)[:500]
    assert time.process_time() - began < SECONDS


# --- strategies -------------------------------------------------------------------------------------------------------

WHAT = ["set", "flip", "insert", "cut", "repeat", "swap"]
edit = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(WHAT),
    st.binary(min_size=1, max_size=6),
)


def changed(content: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for place, what, new in edits:
        at = int(place * max(len(content), 1))
        if what == "set":
            content = content[:at] + new + content[at + len(new) :]
        elif what == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (1 << new[0] % 8)]) + content[at + 1 :]
        elif what == "insert":
            content = content[:at] + new + content[at:]
        elif what == "cut":
            content = content[:at] + content[at + 7 * new[0] :]
        elif what == "repeat":
            content = content[:at] + content[at : at + new[0]] * (1 + new[-1] % 40) + content[at:]
        elif what == "swap":
            content = content[at:] + content[:at]
    return content[: 1 << 20]


def mutants(*bases: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(changed, st.sampled_from(bases), st.lists(edit, max_size=4))


numbers = st.one_of(
    st.integers(-5, 70), st.sampled_from([2**31, 2**63, -(2**63), 10**30]), st.floats(), st.booleans(), st.none()
)
texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["inf", "nan", "1e999", "../x", "a/b", "\0", "x" * 500, "png", "raw"])
)
values = st.recursive(
    st.one_of(numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from paths_in(part, (*path, key))


def replaced(base: Any, changes: list[tuple[int, str, Any]]) -> Any:
    """A JSON value with some of its parts replaced, removed, or joined by others."""
    base = json.loads(json.dumps(base))
    for number, what, new in changes:
        paths = list(paths_in(base))
        if not paths:
            break
        *above, key = paths[number % len(paths)]
        level = base
        for step in above:
            level = level[step]
        if what == "remove":
            del level[key]
        elif what == "add" and isinstance(level, dict):
            level[str(new)[:20]] = new
        else:
            level[key] = new
    return base


def altered(base: Any) -> st.SearchStrategy[Any]:
    change = st.tuples(st.integers(0, 500), st.sampled_from(["replace", "replace", "remove", "add"]), values)
    return st.builds(replaced, st.just(base), st.lists(change, min_size=1, max_size=3))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


# --- what is read -----------------------------------------------------------------------------------------------------


def kinds(place: Path) -> dict[str, tuple[st.SearchStrategy[Any], Read]]:
    """Kind -> inputs and what reads them."""
    make_dataset(place / "data", rows=6, shards=2)
    content = (place / "data" / "manifest.json").read_bytes()
    manifest = {key: value for key, value in json.loads(content).items() if key != SEAL}
    config = {"format": 1, "denoiser": to_flat(CONFIG), "about": {"class_names": ["a"], "metrics": {"fid": 1.0}}}

    def put(name: str, new: bytes) -> str:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(new)
        return str(path)

    def manifest_file(new: bytes) -> None:
        put("data/manifest.json", new)
        read_manifest(str(place / "data"))
        open_dataset(str(place / "data"))

    def config_file(new: bytes) -> None:
        network, _, _ = read_config(new, "config.json")
        check_size(network, 1 << 20, "m")

    def source(name: str) -> Read:
        def read(new: bytes) -> None:
            path = put(name, new)
            opened = open_source(SourceSpec(uri=path, kind=detect_kind(path)))
            for index in range(min(len(opened), 3)):
                to_pixels(opened.record(index), PictureOptions())

        return read

    def zip_of(files: dict[str, bytes]) -> bytes:
        return make_zip(place / "j.zip", files).read_bytes()

    def network_file(new: bytes) -> None:
        network_config(chosen_network(read_network_file(new, "x.pkl"), "ema"))

    parquet = io.BytesIO()
    pq.write_table(pa.table({"image": structs(PNGS), "label": [0, 1, 0, 1]}), parquet)

    def features(new: bytes) -> None:
        table = pa.table({"image": pa.array(PNGS), "label": [0, 1, 0, 1]})
        pq.write_table(table.replace_schema_metadata({"huggingface": new}), place / "f.parquet")
        source("f.parquet")((place / "f.parquet").read_bytes())

    hub = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    npz, fid, tensors = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(npz, images=pixels_of(3, 3, 8), labels=np.arange(3))
    np.savez(fid, mu=np.zeros(3), sigma=np.eye(3))
    torch.save({"ema": {"a": torch.zeros(3)}}, tensors)
    nvlabs = {"dataset.json": b'{"labels": [["a.png", 0], ["b.png", 1]]}', "a.png": PNGS[0], "b.png": PNGS[1]}
    zipped = make_zip(place / "z.zip", nvlabs).read_bytes()
    tarred = make_tar(place / "t.tar", {"a.png": PNGS[0], "a.cls": b"1", "b.png": PNGS[1], "b.json": b'{"label": 0}'})
    cifar = cifar_batch(pixels_of(2), [0, 1])
    moments = Moments.of(np.arange(6, dtype=np.int32).reshape(3, 2), "x", 4).to_bytes()
    pickled = snapshot("vp", source_denoiser("vp"))
    plain = pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [0, 1], b"x": ("a", 1.5, None)}, 2)
    space = {"name": "s", "search": {"churn_fraction": {"low": 0, "high": 1}}, "starts": {"a": {"s_churn": 3}}}
    sampler = b"format: 1\nsampler: {solver: heun, num_steps: 18, s_churn: 40, s_noise: 1.003}\n"
    names = st.lists(
        st.lists(
            st.sampled_from(["train", "test", "val", "a", "0001", "-", "_", ".", "/", "00000-of-00002", "=", "split="]),
            max_size=6,
        )
        .map("".join)
        .map(lambda name: f"{name}.parquet"),
        min_size=1,
        max_size=6,
    )
    return {
        "manifest bytes": (mutants(content), manifest_file),
        "manifest sealed": (altered(manifest).map(sealed_or_none), lambda new: new and manifest_file(new)),
        "config bytes": (mutants(as_json(config)), config_file),
        "config values": (altered(config).map(as_json), config_file),
        "yaml bytes": (mutants(to_yaml(BASE).encode(), sampler, b"a: &x [1, *x]\n? [a]\n: {b: !!int 3}\n"),
                       lambda text: parse_yaml(text, "f")),
        "yaml text": (st.text(alphabet="ab:-?[]{}&*!|>'\"%@`#,\n 01.~<=", max_size=60), lambda t: parse_yaml(t, "f")),
        "set": (st.tuples(st.sampled_from(sorted(leaves(to_flat(BASE)))), texts | numbers.map(str)),
                lambda pair: configure(BASE, None, [f"{pair[0]}={pair[1]}"])),
        "training config": (altered(to_flat(BASE)), lambda flat: config_of_file(place, flat)),
        "sampler file": (mutants(sampler), lambda text: settings_from_yaml(text, "f")),
        "space": (altered(space), lambda given: space_of(given, "f")),
        "parquet": (mutants(parquet.getvalue()), source("p.parquet")),
        "huggingface bytes": (mutants(as_json(hub)), features),
        "huggingface values": (altered(hub).map(as_json), features),
        "zip": (mutants(zipped), source("m.zip")),
        "dataset.json": (altered(json.loads(nvlabs["dataset.json"])).map(as_json),
                         lambda new: source("j.zip")(zip_of({**nvlabs, "dataset.json": new}))),
        "tar": (mutants(tarred.read_bytes()), source("m.tar")),
        "npz": (mutants(npz.getvalue()), source("m.npz")),
        "picture": (mutants(*PNGS[:1]), source("pictures/a.png")),
        "cifar": (mutants(cifar, plain), lambda new: load_plain(new, "x")),
        "network pickle": (mutants(pickled, tensors.getvalue()), network_file),
        "fid npz": (mutants(fid.getvalue()), lambda new: read_fid_npz(new, "x")),
        "moments": (mutants(moments), lambda new: Moments.from_bytes(new, "x")),
        "tensors": (mutants(moments), lambda new: tensors_of(new, "x")),
        "names of splits": (names, lambda given: [choose(given, "train", "x") for choose in CHOOSE]),
    }  # fmt: skip


def sealed_or_none(manifest: Any) -> bytes | None:
    try:
        return sealed(manifest) if isinstance(manifest, dict) else None
    except ValueError:  # NaN is no JSON, so nobody can have sealed it
        return None


def leaves(flat: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in flat.items():
        yield from leaves(value, f"{path}{name}.") if isinstance(value, dict) else (path + name,)


def config_of_file(place: Path, flat: Any) -> None:
    import yaml

    (place / "c.yaml").write_text(yaml.safe_dump(flat), errors="surrogatepass")
    configure(BASE, str(place / "c.yaml"))


NAMES = (
    "manifest bytes", "manifest sealed", "config bytes", "config values", "yaml bytes", "yaml text", "set",
    "training config", "sampler file", "space", "parquet", "huggingface bytes", "huggingface values", "zip",
    "dataset.json", "tar", "npz", "picture", "cifar", "network pickle", "fid npz", "moments", "tensors",
    "names of splits",
)  # fmt: skip


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    found = kinds(tmp_path_factory.mktemp("fuzz"))
    assert tuple(found) == NAMES
    return found


def tried(readers: Any, name: str, examples: int) -> int:
    """Number of inputs."""
    strategy, read = readers[name]
    count = 0

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attempt(value: Any) -> None:
        nonlocal count
        count += 1
        holds(read, value)

    attempt()
    return count


@pytest.mark.parametrize("name", NAMES)
def test_foreign_input_is_read_or_refused_in_one_line(readers, name):
    assert tried(readers, name, SHORT) >= 1


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_foreign_inputs_are_read_or_refused_in_one_line(readers, name, record_property):
    record_property("inputs", tried(readers, name, LONG))


def test_the_claim_can_fail():
    with pytest.raises(KeyError):
        holds({}.__getitem__, "x")
    with zipfile.ZipFile(io.BytesIO(), "w"), pytest.raises(AssertionError):
        holds(lambda _: (_ for _ in ()).throw(InputError("a" * 5000)), None)
