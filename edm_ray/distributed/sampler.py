"""A sampler of the pool: seeds in, features in the store out."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Sequence

import torch

from edm_ray.distributed.chunks import Chunk, has_chunk, write_chunk
from edm_ray.distributed.shipping import ShippedExtractor, ShippedModel
from edm_ray.errors import InputError
from edm_ray.generation.device import kind_of
from edm_ray.generation.generate import generate


class Sampler:
    """One actor. It may be given two chunks at once: then one is sampled while the features of the other are taken and
    written, on a GPU in a stream of their own."""

    def __init__(self, model: ShippedModel, extractors: Sequence[ShippedExtractor], store: str, device: str) -> None:
        self.parts, self.store, self.device = (model, extractors), store, device
        self.sampling, self.judging = threading.Lock(), threading.Lock()

    def load(self) -> None:
        """Not in the constructor: what is raised here reaches the queue as it is."""
        # For the whole process, since two threads that each set them for a while would undo each other's.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        torch.backends.cudnn.allow_tf32 = False
        model, shipped = self.parts
        self.denoiser = model.denoiser(self.device)
        self.extractors = {extractor.identity: extractor for extractor in (one.load(self.device) for one in shipped)}
        self.kind = kind_of(self.device)
        self.stream = torch.cuda.Stream(self.device) if self.device != "cpu" else None
        if self.stream is not None:
            torch.cuda.synchronize(self.device)  # weights are there before another stream reads them
        del self.parts

    def run(self, chunk: Chunk) -> None:
        """The chunk, and of the same images those of the pool's other extractors that are not there."""
        torch.set_num_threads(1)  # of this thread
        made = chunk.generator
        if made.extractor not in self.extractors:
            names = " and ".join(extractor.name for extractor in self.extractors.values())
            raise InputError(f"{chunk}: asks for another extractor than the {names} that the pool holds")
        with self.sampling:
            images = generate(self.denoiser, chunk.seeds, chunk.settings, made.labels, made.micro_batch, made.precision)
        with self.judging, torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext():
            self._judge(chunk, images)

    def _judge(self, chunk: Chunk, images: torch.Tensor) -> None:
        made = chunk.generator
        # The chunk that was asked for comes last: when it is there, so are the others.
        for identity in sorted(self.extractors, key=lambda identity: identity == made.extractor):
            each = dataclasses.replace(chunk, generator=dataclasses.replace(made, extractor=identity))
            if each != chunk and has_chunk(self.store, each):
                continue
            try:
                features = self.extractors[identity].extract(images)
            except FloatingPointError as error:
                raise InputError(f"{chunk}: {error}") from error
            write_chunk(self.store, each, features, self.kind)
