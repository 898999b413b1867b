"""Measure the FID between two sets of images: folders, zips, Parquet, npz or data sets; B may be a reference.

Comparable only with FIDs of equal n, reference and extractor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.cli.workers import choose_executor
from edm_ray.data.importers.pictures import PictureOptions


@dataclass(frozen=True)
class Args(Reports):
    a: Annotated[str, tyro.conf.Positional]
    """The images to judge."""
    b: Annotated[str, tyro.conf.Positional]
    """Images to compare with, or a reference from `edm-ray reference`, which sets the extractor."""
    num: int | None = None
    """Use only the first N images of A; default: all."""
    extractor: str = "inception"
    """The network whose features are compared."""
    weights: str | None = None
    """File with the extractor's weights."""
    pictures: tyro.conf.OmitArgPrefixes[PictureOptions] = field(default_factory=PictureOptions)
    workers: str = "0"
    """Number of Ray actors that extract features; 0: this process, without Ray. The result is the same."""
    device: str = "cpu"
    """cpu or cuda."""


def run(args: Args) -> None:
    from edm_ray.tasks.fid import fid

    executor = choose_executor(args.workers, args.device)
    options = {"extractor": args.extractor, "weights": args.weights, **vars(args.pictures)}
    found = fid(args.a, args.b, num=args.num, on=executor, **options)
    report({"a": args.a, "b": args.b, **found.to_dict()})
    say(f"{found.describe()}: {args.a} against {args.b}")
