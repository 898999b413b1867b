"""Sample images from a model: a grid (OUT.png) or a folder of PNG files (any other OUT)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edm_ray.checkpoint import open_model
from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.sampler import choose_settings
from edm_ray.errors import InputError
from edm_ray.evaluation.grids import save_grid
from edm_ray.sampling.generate import MICRO_BATCH, generate
from edm_ray.storage import uris

GAP = 6
"""Pixels between the images of a grid."""


@dataclass(frozen=True)
class Args:
    model: str
    """Model directory."""
    out: str
    """A .png file for a grid, or a folder for one PNG an image."""
    num: int = 100
    """Number of images."""
    first_seed: int = 0
    """Seeds are first_seed, first_seed + 1, ...; an image depends on its seed alone."""
    labels: str = "balanced"
    """random, balanced, or a class number."""
    sampler: str | None = None
    """best-sampler.yaml of a sweep."""
    set: list[str] = field(default_factory=list)
    """Sampler settings, e.g. --set num_steps=40 s_churn=10"""
    columns: int = 10
    scale: int | None = None
    """Grid only: enlarge pixels by this whole number; by default images become about 64 pixels wide."""
    device: str = "cpu"
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    if args.num < 1 or args.columns < 1 or (args.scale is not None and args.scale < 1) or args.first_seed < 0:
        raise InputError("--num, --columns and --scale must be 1 or more, --first-seed 0 or more")
    settings = choose_settings(args.sampler, args.set)
    denoiser = open_model(uris.absolute(args.model)).denoiser(args.device)
    if args.dry_run:
        say(f"would sample {args.num:,} images, seeds from {args.first_seed}, to {args.out}; settings: {settings}")
        return
    seeds = torch.arange(args.first_seed, args.first_seed + args.num, dtype=torch.int64)
    progress, started, parts = Progress("images"), time.monotonic(), []
    for first in range(0, args.num, MICRO_BATCH):
        parts.append(generate(denoiser, seeds[first : first + MICRO_BATCH], settings, args.labels))
        progress.update(min(first + MICRO_BATCH, args.num), args.num)
    images = torch.cat(parts).numpy()
    out = Path(args.out)
    about = {"model": args.model, "settings": str(settings), "labels": args.labels}
    if out.suffix.lower() == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        last = args.first_seed + args.num - 1
        scale = args.scale or max(1, 64 // images.shape[-1])
        save_grid(out, images, args.columns, {**about, "seeds": f"{args.first_seed}..{last}"}, scale, GAP)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for seed, image in zip(seeds.tolist(), images, strict=True):
            save_grid(out / f"seed{seed:08d}.png", image[None], 1, {**about, "seed": str(seed)}, 1)
    say(f"{args.num} images in {duration(time.monotonic() - started)}: {out}")
