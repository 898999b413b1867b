"""Generate: images of a model by seed, in an array or written where they are wanted."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edm_ray.diffusion.samplers import Heun, Sampler
from edm_ray.errors import InputError
from edm_ray.execution.executor import Executor, OnProgress, no_progress
from edm_ray.execution.local import Local
from edm_ray.generation.evaluate import EvaluationSpec, sample_images
from edm_ray.generation.generate import check_labels, check_precision, labels_of
from edm_ray.generation.generate import generate as generate_here
from edm_ray.generation.outputs import (
    Output,
    ParquetSet,
    PngFolder,
    PngZip,
    Writing,
    require_no_dataset,
    require_no_other_samples,
)
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model
from edm_ray.storage import uris
from edm_ray.tasks.given import model_of

MOST_SEEDS = 1 << 62
"""Seeds are numbers of 63 bits wherever they are kept."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Which images."""

    seed: int = 0
    """Seed of the first image; each further image has the next seed."""
    labels: str = "balanced"
    """Class labels: random, balanced (ten seeds in a row share a class), or a class number."""
    precision: str = "fp32"
    """Precision of the network: fp32, bf16 or fp16. The sampler's state stays float64."""
    guide: str | None = None
    """Guiding model (autoguidance) for --set guidance=...; without it the model itself, without labels, guides
    (classifier-free guidance)."""


@dataclass(frozen=True, kw_only=True)
class GenerateTask:
    """Images that were planned; `parts` and `write` make them."""

    model: Model
    sampler: Sampler
    num: int
    options: GenerateOptions
    store: str | None = None
    """Where chunks of images lie until the output is whole, so that a killed command resumes; None: nowhere."""

    @property
    def seeds(self) -> range:
        return range(self.options.seed, self.options.seed + self.num)

    @property
    def about(self) -> dict[str, str]:
        """For the files: where the images come from."""
        guide = {"guide": self.options.guide} if self.options.guide else {}
        precision = {} if self.options.precision == "fp32" else {"precision": self.options.precision}
        return {
            "model": self.model.uri,
            **guide,
            "settings": str(self.sampler),
            "labels": self.options.labels,
            **precision,
        }

    def parts(self, on: Executor, on_chunk: OnProgress = no_progress) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(seeds int64 [n], images uint8 [n, C, H, W]), in the order of the seeds."""
        with contextlib.ExitStack() as ends:
            store = self.store or ends.enter_context(tempfile.TemporaryDirectory())
            spec = EvaluationSpec(
                model=self.model,
                extractors=(),
                store=store,
                labels=self.options.labels,
                precision=self.options.precision,
            )
            threads = None if isinstance(on, Local) else 1
            yield from sample_images(spec, self.sampler, self.seeds, on, threads, on_chunk)

    def write(self, output: Output, on: Executor, on_chunk: OnProgress = no_progress) -> None:
        """Into a folder, a zip or a data set."""
        with Writing(output) as writing:
            for seeds, images in self.parts(on, on_chunk):
                writing.add(seeds, self.labels(seeds), images)

    def labels(self, seeds: np.ndarray) -> np.ndarray:
        """The class of each seed, int64; 0 without classes."""
        classes = self.model.config.network.label_dim
        if not classes:
            return np.zeros(len(seeds), np.int64)
        numbers = torch.from_numpy(seeds)
        return labels_of(numbers, classes, self.options.labels, self.model.empty_classes).numpy()

    def output(self, out: str, form: Literal["png", "parquet"]) -> Output:
        """Where ``out`` says: a .zip file, a folder of PNG files, or a Parquet data set."""
        classes = self.model.config.network.label_dim
        if Path(out).suffix.lower() == ".zip":
            return PngZip(out, classes > 0, self.about)
        if form == "png":
            return PngFolder(out, self.about)
        return ParquetSet(out, self.num, self.model.class_names, self.about)

    def check_output(self, out: str, form: Literal["png", "parquet"]) -> None:
        """Raises InputError where the images cannot go to: something else is there, or they do not fit on the disk."""
        if form == "parquet":
            require_no_dataset(uris.absolute(out))
        elif Path(out).suffix.lower() != ".zip":
            require_no_other_samples(uris.absolute(out), self.about)
        self._check_space(out)

    def _check_space(self, out: str) -> None:
        """Raises InputError when the images cannot fit on the local disk they are to go to."""
        folder = Path(uris.resolve(out))
        if uris.is_remote(out):
            return
        while not folder.is_dir():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        network = self.model.config.network
        needed = self.num * network.img_channels * network.img_resolution**2
        # Chunks of raw pixels, and then the output; noise is no smaller as PNG.
        if needed > free:
            raise InputError(
                f"--num {self.num}: {needed / 2**30:,.1f} GiB of pixels, {folder} has {free / 2**30:,.1f} GiB free; "
                "give fewer, or another place"
            )

    def forget(self) -> None:
        """Delete the chunks: the output is whole."""
        if self.store is not None:
            uris.delete_directory(self.store)


def plan_generate(
    model: str | Model | ModelDenoiser,
    sampler: Sampler,
    num: int,
    options: GenerateOptions,
    store: str | None = None,
) -> GenerateTask:
    """Open and check everything. Raises InputError for what cannot be sampled."""
    if num < 1 or options.seed < 0:
        raise InputError(f"--num {num}, --seed {options.seed}: give 1 or more, and 0 or more")
    if options.seed + num > MOST_SEEDS:
        raise InputError(f"--num {num}, --seed {options.seed}: seeds end at {MOST_SEEDS - 1:,}")
    check_precision(options.precision)
    opened = model_of(model, options.guide)
    check_labels(options.labels, opened.config.network.label_dim)
    return GenerateTask(model=opened, sampler=sampler, num=num, options=options, store=store)


def generate(
    model: str | Model | ModelDenoiser,
    seeds: torch.Tensor | Sequence[int],
    sampler: Sampler = Heun(),  # noqa: B008 (frozen)
    labels: str = "random",
    **options: Any,
) -> torch.Tensor:
    """Images by seed, in this process: int64 [B] or whole numbers -> uint8 [B, C, H, W] on the host.

    Image i is a function of (model, sampler, seeds[i], labels), whatever else is in the batch. model: a directory, or
    what `load_model` gave (on its device). options: ``precision``, ``micro_batch``.
    """
    denoiser = model if isinstance(model, ModelDenoiser) else model_of(model).denoiser()
    numbers = torch.as_tensor(seeds, dtype=torch.int64)
    return generate_here(denoiser, numbers, sampler, labels, **options)
