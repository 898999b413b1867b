"""What a trial asks dispatchers for: plain values in and out, so that a trial needs nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edm_ray.evaluation.chunks import Chunk, Generator, SampledImages, first_chunks
from edm_ray.evaluation.fid_worker import Measurement, MeasureSets


@dataclass(frozen=True, kw_only=True)
class FirstChunks:
    """The first ``count`` chunks of a pool of seeds."""

    generator: Generator

    def items(self, settings: Mapping[str, Any], pool: str, count: int, size: int) -> list[tuple[Chunk]]:
        return [(chunk,) for chunk in first_chunks(self.generator, settings, pool, count, size)]

    def answer(self, items: Sequence[tuple[Chunk]], made: Sequence[bool]) -> int:
        """Images that were made for this call."""
        return sum(chunk.size for (chunk,), new in zip(items, made, strict=True) if new)


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstFid:
    """Their FID."""

    generator: Generator
    recipe: MeasureSets

    def items(self, settings: Mapping[str, Any], pool: str, count: int, size: int) -> list[tuple[Measurement]]:
        chunks = tuple(first_chunks(self.generator, settings, pool, count, size))
        return [(Measurement(plan=self.recipe.keys[0], images=SampledImages(chunks=chunks)),)]

    def answer(self, items: Sequence[tuple[Measurement]], made: Sequence[bool]) -> dict[str, Any]:
        """The estimate as plain values."""
        return self.recipe.result(items[0][0]).measured.fid.to_dict()
