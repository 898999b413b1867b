"""A run's directory: ``run.json`` (what it is), ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``model/``; where
asked for, ``snapshots/``, ``ema-snapshots/``, ``trackers.json``."""

from __future__ import annotations

import json
from typing import Any

from edm_ray.config.identity import differences, identity, identity_fields
from edm_ray.config.load import to_yaml
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet
from edm_ray.errors import InputError
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.storage import uris

RUN_FILE = "run.json"


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


def checkpoint_store(run_uri: str, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(uris.join(run_uri, "checkpoints"), keep)


def claim_run(run_uri: str, config: TrainingConfig, dataset: DataSet, fresh: bool = False) -> str:
    """Open or create a run's directory and return the run's identity.

    Raises InputError when the directory holds another run (the differences are named) or anything else.
    """
    fields = identity_fields(config, dataset.hash)
    path = uris.join(run_uri, RUN_FILE)
    if uris.exists(path):
        old = json.loads(uris.read_bytes(path))["fields"]
        if fresh:
            for part in ("checkpoints", "ema-snapshots", "snapshots", "model", "tensorboard", "lost"):
                uris.delete_directory(uris.join(run_uri, part))
            _write_metrics(run_uri, [])
            if uris.exists(trackers := uris.join(run_uri, "trackers.json")):
                uris.write_bytes(trackers, b"{}")
        elif changed := differences(old, json.loads(json.dumps(fields))):
            raise InputError(
                f"{run_uri}: holds another run; what differs: {'; '.join(changed[:5])}. "
                "Choose another --out, or give --fresh to delete that run and start over"
            )
    elif found := [name for name in uris.list_names(run_uri) if name != "log"]:
        raise InputError(f"{run_uri}: is not empty and not a run (found {', '.join(found[:4])}); choose another --out")
    content = {"identity": identity(fields), "dataset": dataset.uri, "fields": fields}
    uris.write_bytes(path, json.dumps(content, indent=1, sort_keys=True).encode())
    uris.write_bytes(uris.join(run_uri, "config.yaml"), to_yaml(config).encode())
    return identity(fields)


def read_metrics(run_uri: str, up_to: int | None = None) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``, ascending in nimg; ``up_to`` leaves out what a resumed run will write again."""
    path = uris.join(run_uri, "metrics.jsonl")
    if not uris.exists(path):
        return []
    rows = [json.loads(line) for line in uris.read_bytes(path).splitlines()]
    return [row for row in rows if up_to is None or row["nimg"] <= up_to]


def _write_metrics(run_uri: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    uris.write_bytes(uris.join(run_uri, "metrics.jsonl"), text.encode())


class MetricsLog:
    """Rank 0's metrics. The file is rewritten whole, so it is never half a line and works on object stores."""

    def __init__(self, run_uri: str, images_seen: int) -> None:
        self.run_uri, self.rows = run_uri, read_metrics(run_uri, images_seen)

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        _write_metrics(self.run_uri, self.rows)
