"""Chunks: the unit of evaluation. A chunk is the features of a fixed block of seeds, stored under a content key.

The key names everything that decides the features, so a chunk that exists is never generated again, in this run or the
next, and a chunk from other settings cannot be taken for it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from edm_ray.diffusion.samplers import Sampler, read_sampler
from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris
from edm_ray.storage.commit import canonical_json, sha256

logger = logging.getLogger(__name__)
# Part of every key: raise it when the meaning of a chunk changes (sampler, seeding, rounding, layout).
# 2: with the vp schedule, churn is decided on the noise levels themselves, not on what comes back from time.
CODE_VERSION = 2
CONTENTS = {(np.dtype(np.int32), 2), (np.dtype(np.uint8), 4)}
POOL_START = {"search": 0, "confirm": 1 << 30, "evaluate": 1 << 31}


@dataclass(frozen=True, kw_only=True)
class Generator:
    """What turns seeds into features, apart from the sampler's settings."""

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
    """Seeds [first, first + size) under one setting."""

    generator: Generator
    settings: Sampler
    """In effective form, so that equal samplers share their chunks."""
    first: int
    size: int

    @property
    def identity(self) -> dict[str, Any]:
        return {**_plain(dataclasses.asdict(self)), "code": CODE_VERSION, "torch": torch.__version__}

    @property
    def key(self) -> str:
        return sha256(canonical_json(self.identity).encode())

    def __str__(self) -> str:
        return f"chunk {self.key[:12]} (seeds {self.first}..{self.first + self.size - 1}, {self.settings})"

    @property
    def seeds(self) -> torch.Tensor:
        return torch.arange(self.first, self.first + self.size, dtype=torch.int64)


def _plain(value: Any) -> Any:
    """JSON has no infinity; its name stands for it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def chunks_of(generator: Generator, settings: Sampler, pool: str, count: int, size: int) -> list[Chunk]:
    """The first ``count`` chunks of a pool of seeds: the same seeds for all settings (common random numbers)."""
    start = POOL_START[pool]
    return [Chunk(generator=generator, settings=settings, first=start + i * size, size=size) for i in range(count)]


def first_chunks(generator: Generator, settings: Mapping[str, Any], pool: str, count: int, size: int) -> list[Chunk]:
    """`chunks_of` from plain values, as a trial of a sweep has them."""
    return chunks_of(generator, read_sampler(settings, "trial"), pool, count, size)


def _path(store: str, key: str) -> str:
    return uris.join(store, key[:2], f"{key}.safetensors")


def has_chunk(store: str, chunk: Chunk) -> bool:
    return uris.exists(_path(store, chunk.key))


def write_chunk(store: str, chunk: Chunk, features: np.ndarray, made_on: str = "") -> None:
    """features: int32 [size, d] on the extractor's fixed-point grid, or images, uint8 [size, C, H, W]. made_on: the
    kind of device, by name."""
    tensors = {"features": features}
    metadata = {
        "identity": canonical_json(chunk.identity),
        "sha256": sha256(features.tobytes()),
        "made_on": made_on,
    }
    uris.write_bytes(_path(store, chunk.key), safetensors.numpy.save(tensors, metadata=metadata))


def read_chunk(store: str, chunk: Chunk) -> np.ndarray:
    """As `write_chunk` got it. Raises IntegrityError when the file is damaged or of other settings."""
    return read_whole(store, chunk)[0]


def read_whole(store: str, chunk: Chunk) -> tuple[np.ndarray, str]:
    """The chunk's features, and the kind of device it was made on. Raises as `read_chunk` does."""
    path = _path(store, chunk.key)
    content = uris.read_bytes(path)
    try:
        features = safetensors.numpy.load(content)["features"]
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: not a whole chunk ({error}); delete it and run again") from error
    if not isinstance(header, dict):
        raise IntegrityError(f"{path}: not a chunk (no identity); delete it and run again")
    if header.get("identity") != canonical_json(chunk.identity):
        raise IntegrityError(f"{path}: holds a chunk of other settings; delete it and run again")
    whole = (features.dtype, features.ndim) in CONTENTS and len(features) == chunk.size
    if not whole or header.get("sha256") != sha256(features.tobytes()):
        raise IntegrityError(f"{path}: content differs from its hash; delete it and run again")
    return features, str(header.get("made_on", ""))


def is_stored(store: str, chunk: Chunk) -> bool:
    """Whether the chunk is in the store and whole. One that is damaged or of other settings is named in the log and
    counts as missing: it is made again, and written over."""
    if not has_chunk(store, chunk):
        return False
    try:
        read_chunk(store, chunk)
    except IntegrityError as error:
        logger.warning("%s; it is made again", error)
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is wanted of one chunk."""

    features: np.ndarray
    """int32 [n, d]; of pixels uint8 [n, C, H, W]"""
    seeds: np.ndarray
    """int64 [n]"""
    made_on: str


def read_parts(store: str, chunks: Iterable[Chunk], within: range | None = None) -> Iterator[Part]:
    """These chunks in the order of their seeds, one in memory at a time. within: only images of these seeds.

    A chunk counts once however often it is named, in whatever order. Raises InputError when two chunks are not of one
    sampler, or share seeds: their images would be counted twice.
    """
    once = sorted({chunk.key: chunk for chunk in chunks}.values(), key=lambda chunk: chunk.first)
    for before, after in itertools.pairwise(once):
        if (before.generator, before.settings) != (after.generator, after.settings):
            raise InputError(f"{before} and {after} are of two samplers; one estimate is of one")
        if before.first + before.size > after.first:
            raise InputError(f"{before} and {after} share seeds; an image counts once")
    for chunk in once:
        features, made_on = read_whole(store, chunk)
        seeds = chunk.seeds.numpy()
        if within is not None:
            wanted = (seeds >= within.start) & (seeds < within.stop)
            features, seeds = features[wanted], seeds[wanted]
        yield Part(features=features, seeds=seeds, made_on=made_on)


def gather(store: str, chunks: Iterable[Chunk], within: range | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features int32 [n, d] and seeds int64 [n] of these chunks, as `read_parts` gives them."""
    parts = list(read_parts(store, chunks, within))
    return np.concatenate([part.features for part in parts]), np.concatenate([part.seeds for part in parts])
