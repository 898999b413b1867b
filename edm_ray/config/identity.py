"""Run identity: a hash of what decides a run's result; storage, length and logging are outside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from edm_ray.config.objective import ObjectiveConfig
from edm_ray.config.preconditioning import PreconditioningConfig
from edm_ray.config.training import TrainingConfig

_OUTSIDE = (
    *("total_kimg", "tick_kimg", "checkpoint_kimg", "keep_checkpoints", "on_damage"),
    *("micro_batch", "compile", "graph", "deterministic", "threads"),
    "optimizer.nonfinite",  # decides only how a run continues that would stop
    *("ema.snapshot_kimg", "ema.snapshot_dtype"),
)
_ADDED = {"reader": "cache"}
"""Fields that came later; with this value a run is what it was before."""


def identity_fields(config: TrainingConfig, dataset_hash: str) -> dict[str, Any]:
    """The flat ``a.b.c -> value`` table that the identity is a hash of; a longer run continues a shorter one.

    Constants of Table 1 that are at their defaults are left out: the kind says them.
    """
    flat: dict[str, Any] = {"dataset": dataset_hash}

    def walk(prefix: str, part: Any) -> None:
        constants = isinstance(part, (PreconditioningConfig, ObjectiveConfig))
        for entry in dataclasses.fields(part):
            key, item = f"{prefix}{entry.name}", getattr(part, entry.name)
            if dataclasses.is_dataclass(item):
                walk(f"{key}.", item)
            elif constants and entry.name != "kind" and item == entry.default:
                continue
            elif key not in _OUTSIDE and _ADDED.get(key, ...) != item:
                flat[key] = _number(item)

    walk("", config)
    return flat


def _number(item: Any) -> Any:
    """1 and 1.0 are one value, whether a file or a program says it."""
    if isinstance(item, tuple):
        return [_number(part) for part in item]
    return int(item) if isinstance(item, float) and item.is_integer() else item


def identity(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``key: old -> new`` for everything that differs, for a person to read."""
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]
