"""Chunks: the unit of evaluation. A chunk is the features of a fixed block of seeds, an artefact of the store."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_ray.diffusion.samplers import Sampler, read_sampler
from edm_ray.errors import InputError
from edm_ray.storage import artifacts
from edm_ray.storage.artifacts import plain

# Part of every key: raise it when the meaning of a chunk changes (sampler, seeding, rounding, layout).
# 2: with the vp schedule, churn is decided on the noise levels themselves, not on what comes back from time.
CODE_VERSION = 2
POOL_START = {"search": 0, "confirm": 1 << 30, "evaluate": 1 << 31}
CHUNK_IMAGES = 100
"""Of an evaluation; a sweep's plan has its own size."""


@dataclass(frozen=True, kw_only=True)
class Generator:
    """What turns seeds into features, apart from the sampler."""

    model: str
    """Hash of the model directory's content."""
    extractor: str
    """Identity of the extractor (weights, scale)."""
    labels: str
    micro_batch: int
    device: str
    precision: str = "fp32"
    """Of the network (`edm_ray.generation.generate`)."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Seeds [first, first + size) under one sampler."""

    kind = "chunk"
    generator: Generator
    settings: Sampler
    """In effective form, so that equal samplers share their chunks."""
    first: int
    size: int

    @property
    def identity(self) -> dict[str, Any]:
        made = {"generator": dataclasses.asdict(self.generator), "settings": self.settings.identity}
        facts = {**made, "first": self.first, "size": self.size, "code": CODE_VERSION, "torch": torch.__version__}
        return dict(plain(facts))

    def __str__(self) -> str:
        key = artifacts.key_of(self)
        return f"chunk {key[:12]} (seeds {self.first}..{self.first + self.size - 1}, {self.settings})"

    @property
    def work(self) -> float:
        """Evaluations of the network."""
        return float(self.size * self.settings.nfe)

    @property
    def seeds(self) -> torch.Tensor:
        return torch.arange(self.first, self.first + self.size, dtype=torch.int64)

    def of_extractor(self, identity: str) -> Chunk:
        """Of the same images."""
        return dataclasses.replace(self, generator=dataclasses.replace(self.generator, extractor=identity))


def chunks_of(generator: Generator, settings: Sampler, pool: str, count: int, size: int) -> list[Chunk]:
    """The first ``count`` chunks of a pool of seeds: the same seeds for all samplers (common random numbers)."""
    start = POOL_START[pool]
    return [Chunk(generator=generator, settings=settings, first=start + i * size, size=size) for i in range(count)]


def first_chunks(generator: Generator, settings: Mapping[str, Any], pool: str, count: int, size: int) -> list[Chunk]:
    """`chunks_of` from plain values, as a trial of a sweep has them."""
    return chunks_of(generator, read_sampler(settings, "trial"), pool, count, size)


def chunks_for(
    generator: Generator, settings: Sampler, first: int, num_images: int, size: int = CHUNK_IMAGES
) -> list[Chunk]:
    """Whole chunks that cover ``num_images`` seeds from ``first``, on the one grid that its pool of seeds has: so that
    evaluations of any size share them. They may reach a little beyond on both sides."""
    origin = max(start for start in POOL_START.values() if start <= first)
    begin = first - (first - origin) % size
    return [
        Chunk(generator=generator, settings=settings, first=start, size=size)
        for start in range(begin, first + num_images, size)
    ]


def write_chunk(store: str, chunk: Chunk, features: np.ndarray, made_on: str = "") -> None:
    """features: int32 [size, d] on the extractor's fixed-point grid, or images, uint8 [size, C, H, W]. made_on: the
    kind of device, by name."""
    assert len(features) == chunk.size
    artifacts.write(store, chunk, {"features": features}, made_on=made_on)


def read_chunk(store: str, chunk: Chunk) -> np.ndarray:
    """As `write_chunk` got it. Raises IntegrityError when the file is damaged or of other settings."""
    return artifacts.read(store, chunk).arrays["features"]


@dataclass(frozen=True, kw_only=True)
class FeatureRows:
    """Features of some images."""

    features: np.ndarray
    """int32 [n, d]; of pixels uint8 [n, C, H, W]"""
    seeds: np.ndarray
    """int64 [n]"""
    made_on: str


def read_rows(store: str, chunks: Iterable[Chunk], within: range | None = None) -> Iterator[FeatureRows]:
    """These chunks in the order of their seeds, one in memory at a time. within: only images of these seeds.

    A chunk counts once however often it is named, in whatever order. Raises InputError when two chunks are not of one
    sampler, or share seeds: their images would be counted twice.
    """
    for chunk in _in_order(chunks):
        content = artifacts.read(store, chunk)
        features, seeds = content.arrays["features"], chunk.seeds.numpy()
        if within is not None:
            wanted = (seeds >= within.start) & (seeds < within.stop)
            features, seeds = features[wanted], seeds[wanted]
        yield FeatureRows(features=features, seeds=seeds, made_on=content.notes["made_on"])


def _in_order(chunks: Iterable[Chunk]) -> list[Chunk]:
    once = sorted(dict.fromkeys(chunks), key=lambda chunk: chunk.first)
    for before, after in itertools.pairwise(once):
        if (before.generator, before.settings) != (after.generator, after.settings):
            raise InputError(f"{before} and {after} are of two samplers; one estimate is of one")
        if before.first + before.size > after.first:
            raise InputError(f"{before} and {after} share seeds; an image counts once")
    return once


def gather(store: str, chunks: Iterable[Chunk], within: range | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features int32 [n, d] and seeds int64 [n] of these chunks, as `read_rows` gives them."""
    rows = list(read_rows(store, chunks, within))
    return np.concatenate([each.features for each in rows]), np.concatenate([each.seeds for each in rows])


@dataclass(frozen=True, kw_only=True)
class SampledImages:
    """A set of images to be measured: those of a range of seeds, in chunks of one sampler."""

    chunks: tuple[Chunk, ...]
    within: range | None = None

    @property
    def identity(self) -> dict[str, Any]:
        keys = [artifacts.key_of(chunk) for chunk in _in_order(self.chunks)]
        return {"chunks": keys, "within": None if self.within is None else [self.within.start, self.within.stop]}

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)

    def rows(self, store: str) -> Iterator[FeatureRows]:
        return read_rows(store, self.chunks, self.within)

    def __str__(self) -> str:
        first, last = self.chunks[0], self.chunks[-1]
        return f"images of seeds {first.first}..{last.first + last.size - 1}, {first.settings}"
