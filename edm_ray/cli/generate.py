"""Sample images from a model: a grid (OUT.png), a zip (OUT.zip), a folder of PNG files or a data set (any other OUT).

Pictures that look closer, as OUT.png: samples beside the training images nearest to them (--neighbours), real images
turned into latents and back (--invert), and paths between the latents of two seeds (--interpolate)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.sampler import choose_settings
from edm_ray.cli.workers import choose_executor
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.grids import save_grid
from edm_ray.evaluation.neighbours import pixel_rows
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.evaluate import EvaluationSpec, sample_images
from edm_ray.generation.figures import Figure, interpolation_figure, inversion_figure, neighbour_figure
from edm_ray.generation.generate import BALANCED_RUN, MICRO_BATCH, PRECISIONS, check_labels, generate, labels_of
from edm_ray.generation.outputs import Output, ParquetSet, PngFolder, PngZip, Writing
from edm_ray.models import open_model
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model
from edm_ray.storage import uris

GAP = 6
"""Pixels between the images of a grid."""
FIGURE_ROWS = 8


@dataclass(frozen=True)
class Args:
    model: str
    """Model directory."""
    out: str
    """A .png file for a grid, a .zip file as NVlabs lay theirs out, or a folder; a path or s3:// URI."""
    num: int | None = None
    """Number of images (100), or of rows of the grid with --neighbours and --invert (8)."""
    first_seed: int = 0
    """Seeds are first_seed, first_seed + 1, ...; an image depends on its seed alone."""
    labels: str = "balanced"
    """random, balanced, or a class number."""
    sampler: str | None = None
    """best-sampler.yaml of a sweep, or a directory that holds one (a sweep's; a model's after `sweep --export`)."""
    set: list[str] = field(default_factory=list)
    """Sampler settings, e.g. --set num_steps=40 s_churn=10"""
    guide: str | None = None
    """Model directory of the model that guides it (autoguidance), where --set guidance=... says so. Without it guidance
    is classifier-free: the model itself without its labels."""
    format: Literal["png", "parquet"] = "png"
    """Of a folder: one PNG an image, or a data set like those of `edm-ray prepare`."""
    neighbours: str | None = None
    """Data set: a grid of samples, each with its nearest images of this (training) data set: is it a copy? With
    balanced labels every tenth seed is drawn, so that each row is of another class."""
    nearest: int = 7
    """With --neighbours: how many."""
    reference: str | None = None
    """With --neighbours: nearest in the features of this reference's extractor, instead of in pixels."""
    invert: str | None = None
    """Data set: a grid of its first images, their latents, and the images made from those."""
    interpolate: list[str] = field(default_factory=list)
    """A grid of paths between the latents of two seeds, e.g. --interpolate 3:17 4:18"""
    workers: str = "0"
    """Ray actors that sample, or LEAST:MOST to begin with fewer; 0: this process, without Ray. The images are the
    same. Every node must see the place of --out."""
    columns: int = 10
    scale: int | None = None
    """Grid only: enlarge pixels by this whole number; by default images become about 64 pixels wide."""
    device: str = "cpu"
    precision: str = "fp32"
    """fp32, bf16 or fp16: of the network; the sampler's state stays float64."""
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    is_grid = Path(args.out).suffix.lower() == ".png"
    figures = [
        name
        for name, asked in (
            ("--neighbours", args.neighbours),
            ("--invert", args.invert),
            ("--interpolate", args.interpolate),
        )
        if asked
    ]
    num = args.num if args.num is not None else FIGURE_ROWS if figures else 100
    _check(args, num, figures, is_grid)
    settings = choose_settings(args.sampler, args.set)
    model = open_model(uris.absolute(args.model), args.guide and uris.absolute(args.guide))
    check_labels(args.labels, model.config.network.label_dim)
    if args.dry_run:
        what = figures[0] if figures else f"{num:,} images, seeds from {args.first_seed},"
        who = f"{args.workers} x {args.device}" if args.workers != "0" else "this process"
        say(f"would sample {what} to {args.out}, by {who}; settings: {settings}")
        return
    started = time.monotonic()
    if figures:
        _save_figure(args, _figure(args, num, model, model.denoiser(args.device), settings))
        say(f"{figures[0]} in {duration(time.monotonic() - started)}: {args.out}")
        return
    if is_grid:
        images = np.concatenate([part for _, part in _parts(args, num, model, settings)])
        about = {**_about(args, settings), "seeds": f"{args.first_seed}..{args.first_seed + num - 1}"}
        save_grid(args.out, images, args.columns, about, _scale(args, images), GAP)
    else:
        classes = model.config.network.label_dim
        with Writing(_output(args, num, model, settings)) as output:
            for seeds, part in _parts(args, num, model, settings):
                numbers = torch.from_numpy(seeds)
                labels = labels_of(numbers, classes, args.labels) if classes else torch.zeros_like(numbers)
                output.add(seeds, labels.numpy(), part)
    uris.delete_directory(_store(args))
    say(f"{num} images in {duration(time.monotonic() - started)}: {args.out}")


def _check(args: Args, num: int, figures: list[str], is_grid: bool) -> None:
    if num < 1 or args.columns < 1 or (args.scale is not None and args.scale < 1) or args.first_seed < 0:
        raise InputError("--num, --columns and --scale must be 1 or more, --first-seed 0 or more")
    choose_executor(args.workers, args.device)
    if figures and args.workers != "0":
        raise InputError(f"--workers {args.workers}: {figures[0]} is drawn by this process; leave it out")
    uris.resolve(args.out)  # refuses what is no place
    if args.precision not in PRECISIONS:
        raise InputError(f"--precision {args.precision}: give {', '.join(PRECISIONS)}")
    if len(figures) > 1:
        raise InputError(f"{' and '.join(figures)}: one picture at a time")
    if figures and not is_grid:
        raise InputError(f"--out {args.out}: {figures[0]} draws a picture; give a .png file")
    if args.reference is not None and args.neighbours is None:
        raise InputError("--reference says in which features --neighbours looks; give --neighbours DATASET too")
    if args.format == "parquet" and Path(args.out).suffix.lower() in (".png", ".zip"):
        raise InputError(f"--format parquet makes a directory; --out {args.out} is a file's name")


def _about(args: Args, settings: Sampler) -> dict[str, str]:
    about = {
        "model": args.model,
        **({"guide": args.guide} if args.guide else {}),
        "settings": str(settings),
        "labels": args.labels,
    }
    return about if args.precision == "fp32" else {**about, "precision": args.precision}


def _scale(args: Args, images: np.ndarray) -> int:
    return args.scale or max(1, 64 // images.shape[-1])


def _output(args: Args, num: int, model: Model, settings: Sampler) -> Output:
    about = _about(args, settings)
    classes = model.config.network.label_dim
    if Path(args.out).suffix.lower() == ".zip":
        return PngZip(args.out, classes > 0, about)
    if args.format == "png":
        return PngFolder(args.out, about)
    names = model.about.get("class_names") or []
    return ParquetSet(args.out, num, names if len(names) == classes else [str(i) for i in range(classes)], about)


def _seeds(args: Args, num: int, step: int = 1) -> torch.Tensor:
    return torch.arange(args.first_seed, args.first_seed + num * step, step, dtype=torch.int64)


def _sample(
    args: Args, seeds: torch.Tensor, denoiser: ModelDenoiser, settings: Sampler
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Seeds and images in parts, by this process."""
    progress = Progress("images")
    for first in range(0, len(seeds), MICRO_BATCH):
        part = seeds[first : first + MICRO_BATCH]
        images = generate(denoiser, part, settings, args.labels, precision=args.precision).numpy()
        progress.update(min(first + MICRO_BATCH, len(seeds)), len(seeds))
        yield part.numpy(), images


def _store(args: Args) -> str:
    """Where chunks of images lie until the output is whole; a command that was killed goes on from there."""
    return uris.absolute(f"{args.out}.parts")


def _parts(args: Args, num: int, model: Model, settings: Sampler) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Seeds and images in parts, in the order of the seeds."""
    spec = EvaluationSpec(model=model, extractors=(), store=_store(args), labels=args.labels, precision=args.precision)
    seeds = range(args.first_seed, args.first_seed + num)
    threads = None if args.workers == "0" else 1
    executor, progress = choose_executor(args.workers, args.device), Progress("chunks of images")
    return sample_images(spec, settings, seeds, executor, threads, progress.update)


def _figure(args: Args, num: int, model: Model, denoiser: ModelDenoiser, settings: Sampler) -> Figure:
    if args.interpolate:
        pairs = [_pair(text) for text in args.interpolate]
        return interpolation_figure(denoiser, pairs, args.columns, settings, args.labels, MICRO_BATCH)
    place = args.invert or args.neighbours
    assert place is not None
    dataset = open_dataset(uris.absolute(place))
    _require_like(dataset, model, "--invert" if args.invert else "--neighbours")
    pixels = open_reader(dataset)
    if args.invert:
        return inversion_figure(denoiser, pixels.images[:num], pixels.labels[:num], settings, MICRO_BATCH)
    # Read first: a bad reference should not cost the time of sampling.
    spec = open_reference(uris.absolute(args.reference))[1] if args.reference is not None else None
    step = BALANCED_RUN if args.labels == "balanced" and model.config.network.label_dim else 1
    wanted = _seeds(args, num, step)
    seeds, samples = wanted.numpy(), np.concatenate([part for _, part in _sample(args, wanted, denoiser, settings)])
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
    about = {"model": args.model, "first seed": str(args.first_seed), "labels": args.labels, **figure.text}
    save_grid(args.out, figure.images, figure.columns, about, scale, GAP, figure.lead)
    for line in figure.lines:
        say(f"  {line}")
