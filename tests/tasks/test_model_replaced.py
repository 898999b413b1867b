"""A model directory that is replaced while it is used: what runs is of the model that was opened; nothing is mixed."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import yaml

from edm_ray.cli import main
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.storage import uris
from edm_ray.tasks import sweep as sweeping

SPACE = """
name: small
sampler: {num_steps: 4}
search:
  churn_fraction: {low: 0.1, high: 1.0}
"""
SIZES = [
    "--strategy",
    "random",
    "--num-global",
    "2",
    "--chunk-size",
    "50",
    "--initial-chunks",
    "1",
    "--max-chunks",
    "1",
]
SIZES += ["--confirm-chunks", "1", "--grid", "10"]


@pytest.fixture(scope="module")
def models(digits_dir, tmp_path_factory) -> tuple[Path, Path]:
    """Two of one shape."""
    root, data = tmp_path_factory.mktemp("models"), str(digits_dir / "train")
    for seed in (0, 1):
        words = ["train", "--data", data, "--out", str(root / str(seed)), "--preset", "tiny", "--no-ray"]
        assert main([*words, "--set", f"seed={seed}", "total_kimg=0.24"]) == 0
    return root / "0" / "model", root / "1" / "model"


def _replace(place: Path, model: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(model, place)


def _chunks(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "chunks").rglob("*.safetensors")}


def test_a_sweep_ends_with_the_model_it_began_with_and_exports_nothing_to_another(
    models, digits_reference, tmp_path, monkeypatch, capsys
):
    """Chunks carry the model's hash in their key, which is all the identity that they need: the same command, with the
    other model there, uses none of them."""
    place, space = tmp_path / "model", tmp_path / "space.yaml"
    space.write_text(SPACE)
    shutil.copytree(models[0], place)
    kept, trials = sweeping._KeepProgress.__call__, []

    def replaced_after_the_first_trial(self, result) -> None:
        if not trials:
            _replace(place, models[1])
        trials.append(result)
        kept(self, result)

    monkeypatch.setattr(sweeping._KeepProgress, "__call__", replaced_after_the_first_trial)
    words = ["sweep", "--reference", digits_reference, "--space", str(space), "--workers", "0", *SIZES, "--model"]
    assert main([*words, str(place), "--out", str(tmp_path / "struck"), "--export"]) == 2
    said = capsys.readouterr().err
    assert "holds another model than the one that was used" in said and len(trials) > 3
    assert not (place / "best-sampler.yaml").exists()
    monkeypatch.setattr(sweeping._KeepProgress, "__call__", kept)
    assert main([*words, str(models[0]), "--out", str(tmp_path / "calm")]) == 0
    struck, calm = (yaml.safe_load((tmp_path / name / "best-sampler.yaml").read_text()) for name in ("struck", "calm"))
    assert struck == calm and open_model(str(models[0])).hash in str(struck)
    before = _chunks(tmp_path / "struck")
    assert main([*words, str(place), "--out", str(tmp_path / "struck")]) == 0
    after = _chunks(tmp_path / "struck")
    assert before.items() <= after.items() and len(after) == 2 * len(before), "none was used, and none was changed"


def test_the_metrics_of_a_model_are_not_written_into_another(models, tmp_path):
    from edm_ray.models.directory import add_metrics

    place = tmp_path / "model"
    shutil.copytree(models[0], place)
    measured = open_model(str(place))
    add_metrics(measured, {"FID": 1.0})
    add_metrics(measured, {"FID": 2.0})
    assert open_model(str(place)).about["metrics"]["FID"] == 2.0
    _replace(place, models[1])
    with pytest.raises(InputError, match="holds another model"):
        add_metrics(measured, {"FID": 3.0})
    assert "FID" not in open_model(str(place)).about["metrics"]


def test_a_model_that_is_read_while_a_training_writes_it_is_whole_or_refused(models, tmp_path):
    """As `evaluate` beside `train`: one model or the other, never a mixture, and nothing that is half there."""
    from edm_ray.models import save_model
    from edm_ray.models.weights import tensors_of

    place, stop = str(tmp_path / "model"), threading.Event()
    sources = [open_model(str(path)) for path in models]
    arguments = [(m.config, tensors_of(m.weights, "m"), m.about, m.codec) for m in sources]

    def write() -> None:
        while not stop.is_set():
            for each in arguments:
                save_model(place, *each)

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    try:
        while not uris.exists(f"{place}/manifest.json"):
            pass
        for _ in range(300):
            try:
                seen.add(open_model(place).weights)
            except InputError as error:
                assert str(error).startswith(str(tmp_path))
    finally:
        stop.set()
        thread.join()
    assert seen <= {source.weights for source in sources} and seen
    assert open_model(place).weights in {source.weights for source in sources}
