"""The recipe of the sampling pool: sample images from seeds and take their features; or follow trajectories."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from edm_ray.errors import InputError
from edm_ray.evaluation.chunks import Chunk, write_chunk
from edm_ray.evaluation.device import kind_of
from edm_ray.evaluation.reference import ExtractorSpec
from edm_ray.execution.executor import SAMPLER_CPUS, Item, Needs
from edm_ray.generation.generate import generate
from edm_ray.generation.trajectories import TrajectoryBlock, make_block
from edm_ray.models.directory import Model
from edm_ray.storage import artifacts
from edm_ray.storage.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerateFeatures:
    """An item is chunks of the same images, one for each extractor whose features are wanted of them, or one block of
    trajectories (`trajectories.TrajectoryBlock`)."""

    model: Model
    extractors: tuple[ExtractorSpec, ...]
    store: str
    threads: int | None = 1
    """Of torch while a chunk is made; one gives the same bits everywhere, None leaves what the process has."""

    @property
    def needs(self) -> Needs:
        tensors = len(self.model.weights) + (0 if self.model.guide is None else len(self.model.guide.weights))
        return Needs(
            what="sampling",
            cpus=SAMPLER_CPUS,
            # Tensors in the object store and in the network, extractors, and half a GiB of Python and torch.
            memory=2 * tensors + 3 * sum(len(spec.weights) for spec in self.extractors) + (1 << 29),
            overlap=True,
        )

    def setup(self, device: str) -> FeatureWorker:
        return FeatureWorker(self, device)

    def is_stored(self, artifact: Artifact) -> bool:
        return artifacts.is_stored(self.store, artifact)


class FeatureWorker:
    """Denoiser and extractors, loaded once. It may be given two items at once: then one is sampled while the features
    of the other are taken and written, on a GPU in a stream of their own."""

    def __init__(self, recipe: GenerateFeatures, device: str) -> None:
        self.store, self.threads = recipe.store, recipe.threads
        self.sampling, self.extracting = threading.Lock(), threading.Lock()
        if device != "cpu":
            # For the whole process, since two threads that each set them for a while would undo each other's.
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
            torch.backends.cudnn.allow_tf32 = False
        self.denoiser = recipe.model.denoiser(device)
        self.extractors = {
            extractor.identity: extractor for extractor in (one.load(device) for one in recipe.extractors)
        }
        self.kind = kind_of(device)
        self.stream = torch.cuda.Stream(device) if device != "cpu" else None
        if self.stream is not None:
            torch.cuda.synchronize(device)  # weights are there before another stream reads them

    def make(self, item: Item) -> None:
        wanted: list[Any] = artifacts.missing(self.store, item)
        blocks = [each for each in wanted if isinstance(each, TrajectoryBlock)]
        for block in blocks:
            with torch_threads(self.threads), self.sampling:
                artifacts.write(self.store, block, {"products": make_block(self.denoiser, block)}, made_on=self.kind)
        self._make_chunks([each for each in wanted if each not in blocks])

    def _make_chunks(self, wanted: list[Chunk]) -> None:
        for chunk in wanted:
            if chunk.generator.extractor not in self.extractors:
                names = " and ".join(extractor.name for extractor in self.extractors.values())
                raise InputError(f"{chunk}: asks for another extractor than the {names} that there are")
        if wanted:
            with torch_threads(self.threads):
                self._make(wanted)

    def _make(self, wanted: list[Chunk]) -> None:
        chunk, made = wanted[0], wanted[0].generator
        with self.sampling:
            images = generate(self.denoiser, chunk.seeds, chunk.settings, made.labels, made.micro_batch, made.precision)
        with self.extracting, torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext():
            for each in wanted:
                try:
                    features = self.extractors[each.generator.extractor].extract(images)
                except FloatingPointError as error:
                    raise InputError(f"{each}: {error}") from error
                write_chunk(self.store, each, features, self.kind)


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many threads for torch on the CPU, in this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
