"""What a run keeps: checkpoints, snapshots of the power-function averages, model directories of snapshots.

Each function copies what it needs to the host now and returns what writes it, for the thread that writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from edm_ray.models import save_model
from edm_ray.models.checkpoints import CheckpointStore
from edm_ray.training.posthoc import save_snapshot
from edm_ray.training.snapshots import snapshot_model_uri
from edm_ray.training.writer import persist_or_warn

if TYPE_CHECKING:
    from edm_ray.training.engine import Trainer

Write = Callable[[], None]


def checkpoint(store: CheckpointStore, trainer: Trainer, tallies: list[torch.Tensor]) -> Write:
    """Everything a run goes on from. ``tallies``: `Tally.sums` of every rank."""
    images_seen = trainer.images_seen
    tensors = {stem: _copy(part) for stem, part in trainer.tensors().items()}
    tensors["tally"] = {"sums": torch.stack(tallies)}
    state = {"images_seen": images_seen, "seed": trainer.config.seed}
    return lambda: store.save(images_seen, tensors, state)


def averages(run_uri: str, trainer: Trainer) -> Write:
    """The power-function averages."""
    images_seen = trainer.images_seen
    powers = {width: _copy(average.state_dict()) for width, average in trainer.powers.items()}
    dtype = getattr(torch, trainer.config.ema.snapshot_dtype)
    return lambda: save_snapshot(run_uri, images_seen, powers, dtype)


def model(run_uri: str, trainer: Trainer, about: dict[str, Any]) -> Write:
    """The average as a model directory; what is returned does not raise."""
    uri, config, codec = snapshot_model_uri(run_uri, trainer.images_seen), trainer.config.denoiser, trainer.codec
    average, about = _copy(trainer.average.state_dict()), {**about, "images_seen": trainer.images_seen}
    return lambda: persist_or_warn(lambda: save_model(uri, config, average, about, codec), uri)


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
