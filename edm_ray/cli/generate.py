"""Sample images from a model: a grid (OUT.png), a zip (OUT.zip), a folder of PNG files or a data set (any other OUT).

OUT.png can also show samples next to their nearest training images (--neighbours), real images turned into latents and
back (--invert), or paths between the latents of two seeds (--interpolate)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from edm_ray.cli.console import Reports, duration, report, say
from edm_ray.cli.progress import Progress
from edm_ray.cli.sampler import choose_settings
from edm_ray.cli.workers import choose_executor
from edm_ray.data.importers.source import PICTURE_SUFFIXES
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.grids import rows_by_class, save_grid
from edm_ray.evaluation.neighbours import pixel_rows
from edm_ray.evaluation.reference import open_reference
from edm_ray.execution.executor import Executor
from edm_ray.generation.figures import Figure, interpolation_figure, inversion_figure, neighbour_figure
from edm_ray.generation.generate import BALANCED_RUN, MICRO_BATCH, generate
from edm_ray.models.directory import Model
from edm_ray.storage import uris
from edm_ray.storage.lease import hold
from edm_ray.tasks.generate import GenerateOptions, GenerateTask, plan_generate

GAP = 6
"""Pixels between the images of a grid."""
FIGURE_ROWS = 8
DRAWN = {"--neighbours": "nearest neighbours", "--invert": "inversions", "--interpolate": "interpolations"}
MOST_IN_GRID = 10_000


@dataclass(frozen=True)
class Args(Reports):
    model: str
    """Model directory."""
    out: str
    """OUT.png for a grid, OUT.zip in NVlabs' layout, or a folder; a path or s3:// URI."""
    num: int | None = None
    """Number of images (default 100); with --neighbours and --invert number of rows (default 8)."""
    images: tyro.conf.OmitArgPrefixes[GenerateOptions] = field(default_factory=GenerateOptions)
    sampler: str | None = None
    """The result of a sweep: best-sampler.yaml, best-samplers.yaml, or the directory that holds one (a sweep's, or a
    model's after `sweep --export`)."""
    nfe: int | None = None
    """Which sampler to take from best-samplers.yaml (`sweep --nfe`): the best with at most this many network
    evaluations."""
    set: list[str] = field(default_factory=list)
    """Sampler settings, e.g. --set num_steps=40 s_churn=10"""
    format: Literal["png", "parquet"] = "png"
    """What a folder holds: one PNG per image, or a data set as `edm-ray prepare` makes it."""
    neighbours: str | None = None
    """Training data set: draw samples next to their nearest images in it, to see whether they are copies. With balanced
    labels it draws every tenth seed, so each row shows another class."""
    nearest: int = 7
    """With --neighbours: how many images per sample."""
    reference: str | None = None
    """With --neighbours: compare features of this reference's extractor instead of pixels."""
    invert: str | None = None
    """Data set: draw its first images, their latents, and the images reconstructed from those."""
    interpolate: list[str] = field(default_factory=list)
    """Draw paths between the latents of two seeds, e.g. --interpolate 3:17 4:18"""
    workers: str = "0"
    """Number of Ray actors that sample, or LEAST:MOST to start with fewer; 0: this process, without Ray. The images are
    the same. Every node must see --out."""
    columns: int = 10
    """Grid: images per row. Each row shows one class, named on its left."""
    scale: int | None = None
    """Grid: enlarge pixels by this whole number; by default images become about 64 pixels wide."""
    device: str = "cpu"
    """cpu or cuda."""
    dry_run: bool = False
    """Check the options, print the plan, and stop."""


def run(args: Args) -> None:
    is_grid = Path(args.out).suffix.lower() == ".png"
    asked = {"--neighbours": args.neighbours, "--invert": args.invert, "--interpolate": args.interpolate}
    figures = [name for name, value in asked.items() if value]
    num = args.num if args.num is not None else FIGURE_ROWS if figures else 100
    executor = choose_executor(args.workers, args.device)
    _check(args, figures, is_grid)
    # Chunks of images lie beside the output until it is whole, so that a killed command resumes.
    store = None if figures else uris.absolute(f"{args.out}.parts")
    task = plan_generate(args.model, choose_settings(args.sampler, args.set, args.nfe), num, args.images, store)
    if is_grid and not figures and num > MOST_IN_GRID:
        raise InputError(f"--num {num}: a grid holds {MOST_IN_GRID:,} images at most; give OUT.zip or a folder")
    if not figures and not is_grid:
        task.check_output(args.out, args.format)
    if args.dry_run:
        what = figures[0] if figures else f"{num:,} images, seeds from {args.images.seed},"
        who = f"{args.workers} x {args.device}" if args.workers != "0" else "this process"
        report({"out": args.out, "num": num, "seed": args.images.seed, "sampler": task.sampler.to_dict()})
        say(f"would sample {what} to {args.out}, by {who}; sampler: {task.sampler}")
        return
    if args.sampler is not None:
        say(f"  sampler: {task.sampler}{'' if task.sampler.nfe is None else f'; {task.sampler.nfe} evaluations each'}")
    started = time.monotonic()
    if figures:
        _save_figure(args, _figure(args, task))
        report({"out": args.out, "figure": figures[0], "sampler": task.sampler.to_dict()})
        say(f"{DRAWN[figures[0]]} drawn in {duration(time.monotonic() - started)}: {args.out}")
        return
    is_file = is_grid or Path(args.out).suffix.lower() == ".zip"
    with hold(store if is_file else uris.absolute(args.out), "generate"):
        _write(args, task, is_grid, executor)
    report({"out": args.out, "num": num, "seed": args.images.seed, "sampler": task.sampler.to_dict()})
    say(f"{num} images in {duration(time.monotonic() - started)}: {args.out}")


def _write(args: Args, task: GenerateTask, is_grid: bool, executor: Executor) -> None:
    progress = Progress("chunks of images")
    if is_grid:
        parts = list(task.parts(executor, progress.update))
        seeds, images = (np.concatenate(each) for each in zip(*parts, strict=True))
        names: list[str] = []
        if task.model.config.network.label_dim:
            images, names = rows_by_class(images, task.labels(seeds), args.columns, task.model.class_names)
        about = {**task.about, "seeds": f"{task.seeds.start}..{task.seeds.stop - 1}"}
        save_grid(args.out, images, args.columns, about, _scale(args, images), GAP, names=names)
    else:
        task.write(task.output(args.out, args.format), executor, progress.update)
    task.forget()


def _check(args: Args, figures: list[str], is_grid: bool) -> None:
    if args.columns < 1 or (args.scale is not None and args.scale < 1):
        raise InputError("--columns and --scale must be 1 or more")
    if figures and args.workers != "0":
        raise InputError(f"--workers {args.workers}: {figures[0]} is drawn by this process; leave it out")
    uris.resolve(args.out)  # refuses what is no place
    if len(figures) > 1:
        raise InputError(f"{' and '.join(figures)}: one picture at a time")
    if figures and not is_grid:
        raise InputError(f"--out {args.out}: {figures[0]} draws a picture; give a .png file")
    if args.reference is not None and args.neighbours is None:
        raise InputError("--reference says in which features --neighbours looks; give --neighbours DATASET too")
    suffix = Path(args.out).suffix.lower()
    if suffix in (*PICTURE_SUFFIXES, ".svg", ".pdf", ".npz", ".npy", ".tar", ".parquet") and suffix != ".png":
        raise InputError(f"--out {args.out}: no {suffix} file is written; give OUT.png, OUT.zip, or a folder")
    if args.format == "parquet" and Path(args.out).suffix.lower() in (".png", ".zip"):
        raise InputError(f"--format parquet makes a directory; --out {args.out} is a file's name")


def _scale(args: Args, images: np.ndarray) -> int:
    return args.scale or max(1, 64 // images.shape[-1])


def _samples(task: GenerateTask, device: str, seeds: torch.Tensor) -> Iterator[np.ndarray]:
    """Images of these seeds, by this process."""
    progress, denoiser = Progress("images"), task.model.denoiser(device)
    for first in range(0, len(seeds), MICRO_BATCH):
        part = seeds[first : first + MICRO_BATCH]
        yield generate(denoiser, part, task.sampler, task.options.labels, precision=task.options.precision).numpy()
        progress.update(min(first + MICRO_BATCH, len(seeds)), len(seeds))


def _figure(args: Args, task: GenerateTask) -> Figure:
    model, sampler, labels = task.model, task.sampler, task.options.labels
    if args.interpolate:
        pairs = [_pair(text) for text in args.interpolate]
        denoiser = model.denoiser(args.device)
        return interpolation_figure(denoiser, pairs, args.columns, sampler, labels, MICRO_BATCH)
    place = args.invert or args.neighbours
    assert place is not None
    dataset = open_dataset(uris.absolute(place))
    _require_like(dataset, model, "--invert" if args.invert else "--neighbours")
    pixels = open_reader(dataset)
    if args.invert:
        images, classes = pixels.images[: task.num], pixels.labels[: task.num]
        return inversion_figure(model.denoiser(args.device), images, classes, sampler, MICRO_BATCH)
    # Read first: a bad reference should not cost the time of sampling.
    spec = open_reference(uris.absolute(args.reference))[1] if args.reference is not None else None
    step = BALANCED_RUN if labels == "balanced" and model.config.network.label_dim else 1
    first = task.options.seed
    wanted = torch.arange(first, first + task.num * step, step, dtype=torch.int64)
    seeds, samples = wanted.numpy(), np.concatenate(list(_samples(task, args.device, wanted)))
    training = pixels.images
    if spec is None:
        rows = [pixel_rows(samples), pixel_rows(training)]
        return neighbour_figure(samples, seeds, training, rows[0], rows[1], args.nearest, "pixels, 0 to 255")
    extractor = spec.load(args.device)
    rows = [_features(extractor, images) for images in (samples, training)]
    space, unit = f"features of {spec.name}", 2.0**extractor.scale_bits
    return neighbour_figure(samples, seeds, training, rows[0], rows[1], args.nearest, space, unit)


def _features(extractor: Extractor, images: np.ndarray) -> np.ndarray:
    progress, parts = Progress("features of images"), []
    for first in range(0, len(images), 500):
        parts.append(extractor.extract(torch.from_numpy(images[first : first + 500])))
        progress.update(min(first + 500, len(images)), len(images))
    return np.concatenate(parts)


def _pair(text: str) -> tuple[int, int]:
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--interpolate {text}: give two seeds, e.g. 3:17")
    return int(parts[0]), int(parts[1])


def _require_like(dataset: DataSet, model: Model, flag: str) -> None:
    if not model.codec.is_pixels:
        raise InputError(
            f"{flag}: {model.uri} makes latents (of decoder {model.codec.decoder!r}); it is for pixels only"
        )
    network = model.config.network
    found = (dataset.channels, dataset.resolution)
    wanted = (network.img_channels, network.img_resolution)
    if found != wanted:
        raise InputError(
            f"{flag} {dataset.uri}: images of {found[1]}x{found[1]}x{found[0]}, the model makes "
            f"{wanted[1]}x{wanted[1]}x{wanted[0]}"
        )
    if flag == "--invert" and network.label_dim and len(dataset.class_names) != network.label_dim:
        raise InputError(f"{flag} {dataset.uri}: {len(dataset.class_names)} classes, the model has {network.label_dim}")


def _save_figure(args: Args, figure: Figure) -> None:
    scale = _scale(args, figure.images)
    about = {
        "model": args.model,
        "first seed": str(args.images.seed),
        "labels": args.images.labels,
        **figure.text,
    }
    save_grid(args.out, figure.images, figure.columns, about, scale, GAP, figure.lead)
    for line in figure.lines:
        say(f"  {line}")
