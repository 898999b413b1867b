"""Directories with a manifest are foreign files: a changed byte is damage, and a manifest that is made by hand is read
within bounds, or refused in one line."""

from __future__ import annotations

import json
import random
import shutil
import time
from types import SimpleNamespace

import pytest
import torch

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import DDPMpp
from edm_ray.config.preconditioning import EDMPreconditioning
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.extractors.pixels import Pixels
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import commit_reference, open_reference
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.models.directory import load_model, open_model, save_model
from edm_ray.networks.build import build_denoiser
from edm_ray.report.saved import load_report
from edm_ray.storage.commit import SEAL, commit, read_file, read_manifest, sealed, sha256
from tests.data.readers import make_dataset

CONFIG = DenoiserConfig(
    network=DDPMpp(
        img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=()
    ),
    preconditioning=EDMPreconditioning(),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One directory of each kind, with what opens it."""
    place = tmp_path_factory.mktemp("kinds")
    save_model(str(place / "model"), CONFIG, build_denoiser(CONFIG).state_dict(), {"class_names": []})
    make_dataset(place / "data", rows=8, shards=2)
    store = CheckpointStore(str(place / "checkpoints"))
    store.save(100, {"model": {"a": torch.zeros(2)}, "ema": {"a": torch.ones(2)}}, {"images_seen": 100})
    moments = Moments.of(torch.arange(12, dtype=torch.int32).reshape(4, 3).numpy(), Pixels.identity, 0)
    extractor = SimpleNamespace(name="pixels", identity=Pixels.identity, weights_sha256="")
    commit_reference(str(place / "reference"), moments, open_dataset(str(place / "data")), extractor, b"")
    return {
        "model": (place / "model", load_model),
        "data": (place / "data", open_dataset),
        "checkpoint": (place / "checkpoints" / "nimg-000000000100", lambda _: store.load(100)),
        "reference": (place / "reference", open_reference),
    }


@pytest.fixture(params=["model", "data", "checkpoint", "reference"])
def one(request, places):
    """A directory, what opens it, and its files put back afterwards."""
    path, opens = places[request.param]
    kept = {file: file.read_bytes() for file in path.iterdir()}
    yield path, opens
    for file in path.iterdir():
        if file not in kept:
            file.unlink()
    for file, content in kept.items():
        file.unlink(missing_ok=True)
        file.write_bytes(content)


def test_every_flipped_byte_of_a_manifest_is_damage(one):
    path, opens = one
    opens(str(path))
    content = (path / "manifest.json").read_bytes()
    draws = random.Random(0)
    for place in sorted(draws.sample(range(len(content)), min(len(content), 200))):
        for bit in (0x80, 1 << draws.randrange(7)):
            changed = bytearray(content)
            changed[place] ^= bit
            (path / "manifest.json").write_bytes(changed)
            with pytest.raises(InputError) as caught:
                opens(str(path))
            assert "manifest.json" in str(caught.value) and len(str(caught.value)) < 600, bytes(changed)


def test_every_flipped_byte_of_a_config_is_damage(places):
    path, _ = places["model"]
    content = (path / "config.json").read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 0x80
        (path / "config.json").write_bytes(changed)
        with pytest.raises(IntegrityError, match="sha256 differs"):
            open_model(str(path))
    (path / "config.json").write_bytes(content)


def reseal(path, change):
    """The manifest as somebody would seal it after a change."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[SEAL]
    change(manifest)
    (path / "manifest.json").write_bytes(sealed(manifest))


def put_config(path, change):
    """A config.json that was changed by somebody who knows how hashes are made."""
    content = (path / "config.json").read_bytes()
    if isinstance(change, bytes):
        content = change
    else:
        table = json.loads(content)
        change(table)
        content = json.dumps(table).encode()
    (path / "config.json").write_bytes(content)
    reseal(path, lambda m: m["files"].update({"config.json": {"bytes": len(content), "sha256": sha256(content)}}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(colour=1), "unknown key 'colour'.*a newer version"),
        (lambda m: m.update(format=2), "format 2; this version of edm_ray reads format 1"),
        (lambda m: m.update(kind="edm_ray cake"), "cake|no checkpoint"),
        (lambda m: m["files"].update({"../x": {"bytes": 0, "sha256": ""}}), "'../x', which is no file inside"),
        (lambda m: m["files"].update({"/etc/passwd": {"bytes": 0, "sha256": ""}}), "no file inside"),
        (lambda m: m["files"].update({"a/../../x": {"bytes": 0, "sha256": ""}}), "no file inside"),
        (lambda m: m["files"].update({"more.py": {"bytes": 0, "sha256": ""}}), "more.py|files does not fit"),
        (lambda m: m["files"].update({next(iter(m["files"])): 3}), "size and sha256 are needed"),
        (lambda m: m["files"].update({next(iter(m["files"])): {"bytes": -1, "sha256": ""}}), "size and sha256"),
        (lambda m: m.pop("files"), "no 'files' table"),
        (lambda m: m["files"].clear(), "not listed|does not fit"),
    ],
)
def test_a_manifest_made_by_hand_is_refused_in_one_line(one, change, says):
    path, opens = one
    reseal(path, change)
    with pytest.raises(InputError, match=says):
        opens(str(path))


def test_a_manifest_without_its_hash_is_refused(one):
    path, opens = one
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[SEAL]
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    with pytest.raises(InputError, match="lacks its own hash"):
        opens(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"files": {}, "files": {}}', b"NaN"]
)
def test_a_manifest_that_is_no_json_is_refused_in_one_line(one, content):
    path, opens = one
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest.json: not (JSON|a manifest)|nested deeper") as caught:
        opens(str(path))
    assert len(str(caught.value)) < 600


def test_a_file_that_is_a_link_out_of_its_directory_is_refused(one, tmp_path):
    path, opens = one
    name = sorted(file.name for file in path.iterdir() if file.name.endswith((".safetensors", ".parquet")))[0]
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link that leads out of the directory"):
        opens(str(path))
        read_file(str(path), name, read_manifest(str(path)))


def test_a_file_larger_than_its_manifest_says_is_not_read(tmp_path):
    manifest = commit(str(tmp_path), [("a", b"x" * 10)], kind="x")
    (tmp_path / "a").write_bytes(b"x" * 1000)
    with pytest.raises(IntegrityError, match="1,000 bytes, at most 10 are expected"):
        read_file(str(tmp_path), "a", manifest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (b"", "not JSON"),
        (b"[]", "a mapping is needed"),
        (b"{" * 5_000, "nested deeper|not JSON"),
        (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, "nested deeper than 32"),
        (b" " * (2 << 20), "at most 1,048,576 are read"),
        (b'{"format": 1, "denoiser": {}, "about": {}, "about": {}}', "given twice"),
        (b'{"format": 1, "denoiser": {"network": {"dropout": NaN}}, "about": {}}', "NaN is not a number"),
        (b'{"format": 1, "about": {"seed": ' + b"9" * 5_000 + b"}}", "not JSON"),
        (lambda c: c.pop("denoiser"), "denoiser is missing"),
        (lambda c: c.pop("about"), "about is missing"),
        (lambda c: c.update(format=7), "reads format 1"),
        (lambda c: c.update(colour=1), "unknown key 'colour'.*a newer version"),
        (lambda c: c.update(denoiser=[]), "denoiser is missing or no mapping"),
        (lambda c: c["denoiser"].update(colour=1), "unknown key 'colour'"),
        (lambda c: c["denoiser"]["network"].update(colour=1), "unknown key '.*colour'"),
        (lambda c: c["denoiser"]["network"].update(kind=["a"]), "kind=.*is not allowed"),
        (
            lambda c: c["denoiser"]["network"].update(num_blocks=10**8),
            "num_blocks=100000000 is not allowed: at most 64",
        ),
        (lambda c: c["denoiser"]["network"].update(model_channels=2**31), "at most 8,192"),
        (lambda c: c["denoiser"]["network"].update(model_channels=10**400), "at most 8,192|model_channels"),
        (lambda c: c["denoiser"]["network"].update(channel_mult=[1] * 10_000), "at most 16 levels"),
        (lambda c: c["denoiser"]["network"].update(channel_mult=[10**9]), "of 1 to 64"),
        (lambda c: c["denoiser"]["network"].update(img_resolution=10**9), "at most 4,096"),
        (
            lambda c: c["denoiser"]["network"].update(model_channels=8192, num_blocks=64),
            "describes a network of .* bytes",
        ),
        (lambda c: c["denoiser"]["network"].update(label_dim=10**6), "describes a network of .* bytes"),
        (lambda c: c["about"].update(class_names=[1]), "about.class_names=.*a list of texts"),
        (lambda c: c["about"].update(empty_classes=[99]), "about.empty_classes="),
        (lambda c: c["about"].update(metrics=3), "about.metrics=3"),
        (
            lambda c: c.update(
                codec={"kind": "latents", "dtype": "float16", "decoder": "x", "mean": [0, 0], "std": [1, 1]}
            ),
            "codec has 2",
        ),
    ],
)
def test_a_config_made_by_hand_is_refused_in_one_line_within_seconds(places, tmp_path, change, says):
    path = tmp_path / "model"
    shutil.copytree(places["model"][0], path)
    put_config(path, change)
    began = time.monotonic()
    with pytest.raises(InputError, match=says) as caught:
        load_model(str(path))
    assert time.monotonic() - began < 10 and len(str(caught.value)) < 700


def test_a_file_that_holds_no_tensors_is_refused(places, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(places["model"][0], path)
    size = (path / "model.safetensors").stat().st_size
    for content in (b"\xff" * size, b"\0" * size):
        (path / "model.safetensors").write_bytes(content)
        entry = {"bytes": size, "sha256": sha256(content)}
        reseal(path, lambda m, entry=entry: m["files"].update({"model.safetensors": entry}))
        with pytest.raises(IntegrityError, match="not a file of tensors"):
            load_model(str(path))


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "samples-1.png/../x", "config.yaml", 3, None])
def test_a_report_reads_no_file_outside_of_its_sweep(tmp_path, name):
    from edm_ray.report.saved import _grids

    (tmp_path / "secret.png").write_bytes(b"secret")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    with pytest.raises(IntegrityError, match="is no file of a sweep; nothing else is read"):
        _grids(str(sweep), {"grid": name})
    (sweep / "samples-1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match="leads out of the directory"):
        _grids(str(sweep), {"grid": "samples-1.png"})


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b"{}"])
def test_a_damaged_sweep_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(InputError, match=r"sweep.json: ") as caught:
        load_report(str(tmp_path))
    assert len(str(caught.value)) < 700
