"""Export: a model of a run that is not finished, from its last checkpoint or one of its snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edm_ray.config.load import validate
from edm_ray.config.text import read_yaml
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.errors import InputError
from edm_ray.models import open_model, save_model
from edm_ray.models.weights import tensors_of
from edm_ray.storage import uris
from edm_ray.storage.versioned import read_json
from edm_ray.training.run import DAMAGED, RUN_FILE, checkpoint_store, identity_of, snapshots


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model directory, and how far its run was."""

    uri: str
    images_seen: int
    total: int
    source: str
    """checkpoint or snapshot."""


def is_run(uri: str) -> bool:
    return uris.exists(uris.join(uri, RUN_FILE))


def export_run(run_uri: str, out: str | None = None, nimg: int | None = None) -> Exported:
    """Write a model directory of a run as it is now; the training may go on meanwhile.

    nimg: as of so many images, of which there must be a checkpoint or a snapshot; default: the last. out: default
    RUN/model-NIMG. Raises InputError for a run that has neither.
    """
    if not is_run(run_uri):
        raise InputError(f"{run_uri}: no run; give the --out of edm-ray train")
    config = _config_of(run_uri)
    stored = dict(snapshots(run_uri))
    store = checkpoint_store(run_uri, run=identity_of(run_uri))
    known = sorted({*stored, *store.committed()})
    if not known or nimg not in (None, *known):
        asked = "" if nimg is None else f"--nimg {nimg}: "
        there = ", ".join(f"{each:,}" for each in known) or "none yet: the first comes after checkpoint_kimg"
        raise InputError(f"{asked}{run_uri}: has checkpoints and snapshots at {there} images")
    at = known[-1] if nimg is None else nimg
    place = out or uris.join(run_uri, f"model-{at:012d}")
    total = round(config.total_kimg * 1000)
    if at in stored:
        model = open_model(stored[at])
        save_model(place, model.config, tensors_of(model.weights, stored[at]), model.about, model.codec)
        return Exported(uri=place, images_seen=at, total=total, source="snapshot")
    dataset = open_dataset(str(read_json(uris.join(run_uri, RUN_FILE), DAMAGED).get("dataset")))
    about = {**about_of(dataset, config.seed), "run": store.run, "images_seen": at}
    checkpoint = store.load(at)
    assert checkpoint is not None
    save_model(place, config.denoiser, checkpoint.tensors["ema"], about, dataset.codec)
    return Exported(uri=place, images_seen=at, total=total, source="checkpoint")


def _config_of(run_uri: str) -> TrainingConfig:
    where = uris.join(run_uri, "config.yaml")
    content = read_yaml(where)
    content.pop("format", None)
    return validate(TrainingConfig, content, where)


def about_of(dataset: DataSet, seed: int, preset: str = "") -> dict[str, Any]:
    """What a model says of its training."""
    about: dict[str, Any] = {
        "preset": preset,
        "dataset": dataset.name,
        "dataset_hash": dataset.hash,
        "seed": seed,
        "class_names": list(dataset.class_names),
    }
    if dataset.empty_classes:
        about["empty_classes"] = list(dataset.empty_classes)
    return about
