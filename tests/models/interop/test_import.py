"""Official network files in: every tensor, every output, and nothing executed."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from pathlib import Path

import pytest
import torch

from edm_ray.errors import InputError, IntegrityError
from edm_ray.models.interop import import_pickle
from edm_ray.models.interop.inert import TensorRecord, load_from_bytes
from edm_ray.models.interop.pickles import Budget
from tests.models.interop.foreign import (
    CASES,
    canary_source,
    foreign_modules,
    snapshot,
    source_denoiser,
    training_state,
)


def equal_denoisers(one: torch.nn.Module, other: torch.nn.Module, case: str) -> bool:
    label_dim = CASES[case][1].get("label_dim", 0)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 3
    labels = torch.eye(4)[:2] if label_dim else None
    with torch.no_grad():
        return all(torch.equal(one(x, sigma, labels), other(x, sigma, labels)) for sigma in torch.tensor([0.05, 3.0]))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("case", list(CASES))
def test_a_snapshot_comes_in_with_equal_tensors_and_outputs_and_runs_nothing(
    tmp_path: Path, case: str, protocol: int
) -> None:
    source, canary = source_denoiser(case), tmp_path / "canary"
    path = tmp_path / "network-snapshot-200000.pkl"
    path.write_bytes(snapshot(case, source, canary_source(canary), protocol))
    imported = import_pickle(str(path))
    expected = source.state_dict()
    assert imported.state.keys() == expected.keys()
    assert all(torch.equal(imported.state[name], tensor) for name, tensor in expected.items())
    assert equal_denoisers(imported.denoiser(), source, case)
    assert not canary.exists()
    assert imported.facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (imported.facts["images_seen"], imported.facts["dataset"]) == (200_000_000, "cifar10-32x32")
    assert (imported.facts["class_name"], imported.facts["loss"]) == (CASES[case][0], "EDMLoss")


@pytest.mark.parametrize("case", ["ve", "iddpm"])
def test_a_training_state_comes_in_through_its_zip_container(tmp_path: Path, case: str) -> None:
    source, canary = source_denoiser(case), tmp_path / "canary"
    path = tmp_path / "training-state-000100.pt"
    path.write_bytes(training_state(case, source, canary_source(canary)))
    with pytest.raises(InputError, match=r"no network 'ema'.*net, optimizer_state; give --key net"):
        import_pickle(str(path))
    imported = import_pickle(str(path), key="net")
    assert all(torch.equal(imported.state[name], tensor) for name, tensor in source.state_dict().items())
    assert equal_denoisers(imported.denoiser(), source, case) and not canary.exists()


def test_the_canary_would_sing_where_the_file_is_unpickled(tmp_path: Path) -> None:
    """What the official loader does with the source text in the file; so the tests above can fail."""
    source, canary = source_denoiser("vp"), tmp_path / "canary"
    content = snapshot("vp", source, canary_source(canary))
    with foreign_modules():
        module = sys.modules["torch_utils.persistence"]
        module._reconstruct_persistent_obj.__code__ = (lambda meta: exec(meta["module_src"], {})).__code__
        pickle.loads(content)
    assert canary.exists()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
def test_a_storage_is_read_as_torch_reads_it(dtype: str) -> None:
    tensor = (torch.arange(-5, 12) % 7).to(getattr(torch, dtype))
    stream = io.BytesIO()
    torch.save(tensor._typed_storage(), stream, _use_new_zipfile_serialization=False)
    content = stream.getvalue()
    expected = torch.load(io.BytesIO(content), weights_only=True)
    storage = load_from_bytes(content, Budget(1000, 0))
    assert (storage.dtype, storage.numel) == (expected.dtype, len(expected))
    assert torch.equal(TensorRecord(storage, 0, (17,), (1,)).tensor(), tensor)


def test_tensors_saved_on_a_gpu_come_in_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_denoiser("vp")
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:3")
    (tmp_path / "a.pkl").write_bytes(snapshot("vp", source))
    imported = import_pickle(str(tmp_path / "a.pkl"))
    assert all(tensor.device.type == "cpu" for tensor in imported.state.values())
    assert all(torch.equal(imported.state[name], tensor) for name, tensor in source.state_dict().items())


def test_the_hash_that_was_asked_for_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(snapshot("vp", source_denoiser("vp")))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert import_pickle(str(path), sha256=digest.upper()).facts["sha256"] == digest
    with pytest.raises(IntegrityError, match="not the file asked for"):
        import_pickle(str(path), sha256="0" * 64)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        import_pickle(str(path), sha256="12")
