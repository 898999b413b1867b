"""The fault matrix, S3: away, silent or cut at each moment of a training and of an evaluation on fresh seeds. The bits
are those of storage that is always there. Opt-in; `tests/faults.py` is the table."""

from __future__ import annotations

import threading
import time

import pytest

from edm_ray.cli import main
from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.reference import open_reference
from edm_ray.execution.local import Local
from edm_ray.generation.evaluate import EvaluationSpec, fid_meter
from edm_ray.models import open_model
from edm_ray.storage import s3
from edm_ray.training.run import model_uri
from tests.storage.proxies import Faults, proxied
from tests.training.faults import result_of, train_tiny

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]
AWAY, SILENT, CUT = "SIGKILL", "SIGSTOP", "cut connection"
REQUESTS = {
    "start": ("GET", "/struck/heldout/manifest.json"),
    "first step": ("GET", ".parquet"),
    "saving": ("PUT", "{run}/metrics.jsonl"),
    "uploading": ("PUT", "{run}/checkpoints/"),
    "confirming": ("PUT", "/chunk/"),
    "ending": ("PUT", "{run}/model/"),
}
"""Moment -> the request from which on S3 is struck: method and part of its path."""
CELLS = [(moment, kind) for moment in REQUESTS for kind in (AWAY, SILENT, CUT) if (moment, kind) != ("start", AWAY)]


@pytest.fixture(scope="module")
def calm(digits_dir, server, tmp_path_factory):
    """URI of a run that nothing struck."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server)
        assert main(["prepare", "digits", "s3://bucket/struck"]) == 0
        run = str(tmp_path_factory.mktemp("calm") / "run")
        train_tiny(str(digits_dir / "heldout"), run)
    return run


@pytest.fixture
def faults(server, monkeypatch, tmp_path):
    for name, value in {"FIRST_WAIT_S": 0.01, "LONGEST_WAIT_S": 0.1, "READ_S": 0.5}.items():
        monkeypatch.setattr(s3, name, value)
    monkeypatch.setenv(s3.PATIENCE, "60")
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "cache"))
    s3._client.cache_clear()
    with proxied(server) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield faults
    s3._client.cache_clear()


def _strike(faults: Faults, kind: str, method: str, part: str) -> threading.Event:
    """From the first such request on; set when it has come."""
    struck = threading.Event()

    def picked(called: str, path: str) -> bool:
        if called == method and part in path and not struck.is_set():
            struck.set()
            if kind == AWAY:
                faults.busy = 10**9
                threading.Timer(2.0, lambda: setattr(faults, "busy", 0)).start()
            elif kind == SILENT:
                faults.muted_s = 5.0
            else:
                faults.dropped = 2
        return struck.is_set()

    faults.where = picked
    return struck


@pytest.mark.parametrize(("moment", "kind"), CELLS)
def test_storage_that_is_struck_at_any_moment_changes_no_bit(faults, calm, digits_reference, tmp_path, moment, kind):
    method, part = REQUESTS[moment]
    run = f"s3://bucket/{moment.split()[0]}-{kind.split()[0]}"
    struck, began = _strike(faults, kind, method, part.format(run=run.removeprefix("s3:/"))), time.monotonic()
    if moment == "confirming":
        stores = (run, str(tmp_path / "store"))
        assert len({repr(_fid_of_fresh_seeds(calm, digits_reference, store)) for store in stores}) == 1
    else:
        train_tiny("s3://bucket/struck/heldout", run)
        assert result_of(run) == result_of(calm)
    assert struck.is_set(), "such a request was made"
    assert time.monotonic() - began < 60


def _fid_of_fresh_seeds(run: str, reference_uri: str, store: str) -> object:
    model, (reference, extractor) = open_model(model_uri(run)), open_reference(reference_uri)
    spec = EvaluationSpec(model=model, extractors=(extractor,), store=store)
    with fid_meter(spec, Plan(metrics=("fid",), reference=reference), Local()) as meter:
        return meter.fid(sampler(num_steps=2).effective(model.denoiser()).to_dict(), "confirm", 2, 50)
