"""What a trial asks the dispatchers for: plain values in and out, so that a trial needs nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edm_ray.evaluation.chunks import Generator, SampledImages, first_chunks
from edm_ray.evaluation.fid_worker import Measurement, MeasureSets
from edm_ray.execution.executor import Item, Recipe

Recipes = tuple[Recipe, MeasureSets]
"""Of the pools: sampling, then measuring."""


@dataclass(frozen=True, kw_only=True)
class FirstFid:
    """The FID of the first ``count`` chunks of a pool of seeds."""

    generator: Generator

    def steps(
        self, recipes: Recipes, settings: Mapping[str, Any], seeds: str, count: int, size: int
    ) -> list[list[Item]]:
        chunks = first_chunks(self.generator, settings, seeds, count, size)
        measurement = Measurement(plan=recipes[1].keys[0], images=SampledImages(chunks=tuple(chunks)))
        return [[(chunk,) for chunk in chunks], [(measurement,)]]

    def answer(
        self, recipes: Recipes, steps: Sequence[Sequence[Item]], made: Sequence[Sequence[bool]]
    ) -> dict[str, Any]:
        """The estimate as plain values, and the images that were made for this call."""
        chunks, [(measurement,)] = steps
        generated = sum(chunk.size for (chunk,), new in zip(chunks, made[0], strict=True) if new)
        return {"estimate": recipes[1].result(measurement).measured.fid.to_dict(), "generated": generated}
