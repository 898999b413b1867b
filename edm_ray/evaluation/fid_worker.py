"""Measurements as artefacts: what is known of a set of images against a reference, made by workers of their own.

So slow algebra holds neither a sampler nor a trial, and a sweep that is run again measures nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from edm_ray.evaluation.chunks import FeatureRows
from edm_ray.evaluation.fid import FidReference
from edm_ray.evaluation.measure import Measured, Plan, measure_rows
from edm_ray.execution.executor import Item, Needs
from edm_ray.storage import artifacts
from edm_ray.storage.artifacts import Artifact
from edm_ray.storage.commit import canonical_json, sha256

CODE_VERSION = 2
"""Part of every key: raise it when the numbers of equal features change.

2: standard errors from influences; what is kept for paired differences is the influence of 73 groups of images."""
FID_WORKER_CPUS = 0.05
"""Samplers leave so little of each CPU; a FID worker works now and then."""


class Images(Protocol):
    """A set of images whose features are stored."""

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def size(self) -> int:
        """Images, or a few more."""

    def rows(self, store: str) -> Iterator[FeatureRows]: ...


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One set of images against one plan's reference."""

    kind = "measurement"
    plan: str
    """Key of the plan (`plan_key`)."""
    images: Images

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "plan": self.plan,
            "images": sha256(canonical_json(self.images.identity).encode()),
            "code": CODE_VERSION,
            "numpy": np.__version__,
        }

    @property
    def work(self) -> float:
        return float(self.images.size)

    def __str__(self) -> str:
        return f"measurement of {self.images}"


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """The metrics of one set of images."""

    measured: Measured
    made_on: tuple[str, ...]
    """The kinds of device that made the images."""


def plan_key(plan: Plan) -> str:
    return sha256(canonical_json(plan.identity).encode())


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasureSets:
    """The recipe of measurements: by these plans, of images whose features lie in the same store."""

    plans: tuple[Plan, ...]
    store: str
    most: int = 1
    """Measurements under way at once, at most."""
    keys: tuple[str, ...] = field(init=False)
    """Of the plans."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(plan_key(plan) for plan in self.plans))

    @cached_property
    def needs(self) -> Needs:
        return Needs(what="measuring", cpus=FID_WORKER_CPUS, light=True, most=self.most)

    def setup(self, device: str) -> FidWorker:
        return FidWorker(self)

    def is_stored(self, artifact: Artifact) -> bool:
        return artifacts.is_stored(self.store, artifact)

    def result(self, measurement: Measurement) -> SetResult:
        """From the store. Raises as `artifacts.read` does."""
        notes = artifacts.read(self.store, measurement).notes
        measured = Measured.from_dict(json.loads(notes["measured"]), self.plan(measurement))
        return SetResult(measured=measured, made_on=tuple(json.loads(notes["made_on"])))

    def plan(self, measurement: Measurement) -> Plan:
        return self.plans[self.keys.index(measurement.plan)]


class FidWorker:
    """Has the references decomposed, once."""

    def __init__(self, recipe: MeasureSets) -> None:
        self.recipe = recipe
        self.decomposed = {
            key: FidReference(plan.reference.moments) for key, plan in zip(recipe.keys, recipe.plans, strict=True)
        }

    def make(self, item: Item) -> None:
        for measurement in item:
            kinds: set[str] = set()
            rows = partial(self._rows, measurement.images, kinds)
            measured = measure_rows(rows, self.recipe.plan(measurement), self.decomposed[measurement.plan])
            notes = {"measured": json.dumps(measured.to_dict()), "made_on": json.dumps(sorted(kinds))}
            artifacts.write(self.recipe.store, measurement, {}, **notes)

    def _rows(self, images: Images, kinds: set[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in images.rows(self.recipe.store):
            kinds.add(rows.made_on)
            yield rows.features, rows.seeds
