"""A run's directory: ``run.json`` (what it is), ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``model/``; where
asked for, ``snapshots/NIMG/`` (``model/`` and ``grid.png``), ``ema-snapshots/``, ``trackers.json``."""

from __future__ import annotations

import json
from typing import Any

from edm_ray.config.identity import differences, identity, identity_fields
from edm_ray.config.load import to_yaml
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.errors import InputError, IntegrityError
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST
from edm_ray.storage.numbered import numbers
from edm_ray.storage.versioned import read_json, write_json
from edm_ray.training.metrics import write_metrics
from edm_ray.training.skipped_shards import FOLDER as SKIPPED
from edm_ray.training.trackers import forget_trackers

RUN_FILE = "run.json"
DAMAGED = "give --fresh to delete the run and start over"


def refuse_mirrored_latents(config: TrainingConfig, dataset: DataSet) -> None:
    """Raises InputError for x-flip and augmentation of latents: neither gives the latent of another picture."""
    for name, asked in (("xflip", config.xflip), ("augment.probability", config.augment.probability)):
        if asked and not dataset.codec.is_pixels:
            raise InputError(
                f"{name}={asked!r}, but {dataset.uri} holds latents: a mirrored or turned latent is not the latent of "
                "the mirrored or turned picture; turn it off, or encode such pictures too"
            )


def model_uri(run_uri: str) -> str:
    return uris.join(run_uri, "model")


def snapshot_model_uri(run_uri: str, images_seen: int) -> str:
    return uris.join(run_uri, "snapshots", f"{images_seen:012d}", "model")


def grid_uri(run_uri: str, images_seen: int) -> str:
    return uris.join(run_uri, "snapshots", f"{images_seen:012d}", "grid.png")


def snapshots(run_uri: str) -> list[tuple[int, str]]:
    """Images seen, and URI of the model directory, of every snapshot that is written, ascending. Raises InputError for
    one of another run."""
    run, found = identity_of(run_uri), []
    for images_seen in numbers(uris.join(run_uri, "snapshots"), "{:012d}"):
        uri = snapshot_model_uri(run_uri, images_seen)
        if uris.exists(uris.join(uri, MANIFEST)):
            about = read_json(uris.join(uri, "config.json"), "delete that snapshot").get("about")
            refuse_other_run(uri, str(about.get("run", "")) if isinstance(about, dict) else "", run)
            found.append((images_seen, uri))
    return found


def _fields_of(path: str) -> dict[str, Any]:
    """What run.json says that the run is."""
    content = read_json(path, DAMAGED)
    if not isinstance(content.get("fields"), dict):
        raise IntegrityError(f"{path}: damaged, says not what the run is; {DAMAGED}")
    fields: dict[str, Any] = content["fields"]
    return fields


def identity_of(run_uri: str) -> str:
    """What run.json says; '' where there is none."""
    path = uris.join(run_uri, RUN_FILE)
    return str(read_json(path, DAMAGED).get("identity")) if uris.exists(path) else ""


def refuse_other_run(what: str, its: str, run: str) -> None:
    """Raises InputError for something that another run has written. run: this one's identity; '': not known."""
    if run and its != run:
        raise InputError(
            f"{what}: is of run {its or 'unknown'}, this run is {run} (run.json); it is not used: delete it, or give "
            "--fresh to delete the run and start over"
        )


def checkpoint_store(run_uri: str, keep: int = 2, run: str = "") -> CheckpointStore:
    """run: its identity, for whoever writes or resumes."""
    return CheckpointStore(uris.join(run_uri, "checkpoints"), keep, run)


def claim_run(run_uri: str, config: TrainingConfig, dataset: DataSet, fresh: bool = False) -> str:
    """Open or create a run's directory and return the run's identity.

    Raises InputError when the directory holds another run (the differences are named) or anything else.
    """
    fields = identity_fields(config, dataset.hash)
    path = uris.join(run_uri, RUN_FILE)
    if uris.exists(path):
        if fresh:
            for part in ("checkpoints", "ema-snapshots", "snapshots", "model", "tensorboard", SKIPPED):
                uris.delete_directory(uris.join(run_uri, part))
            write_metrics(run_uri, [])
            forget_trackers(run_uri)
        elif changed := differences(_fields_of(path), json.loads(json.dumps(fields))):
            raise InputError(
                f"{run_uri}: holds another run; what differs: {'; '.join(changed[:5])}. "
                "Choose another --out, or give --fresh to delete that run and start over"
            )
    elif found := [name for name in uris.list_names(run_uri) if name != "log"]:
        raise InputError(f"{run_uri}: is not empty and not a run (found {', '.join(found[:4])}); choose another --out")
    write_json(path, {"identity": identity(fields), "dataset": dataset.uri, "fields": fields})
    uris.write_bytes(uris.join(run_uri, "config.yaml"), to_yaml(config).encode())
    return identity(fields)
