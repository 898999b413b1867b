"""FID between two sets of images, wherever they lie: folders, zips, Parquet, npz, data sets; B may be a reference.

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
    """What they are compared with; or a reference that `edm-ray reference` wrote, which says the extractor."""
    num: int | None = None
    """So many images of A, from the first; default: all."""
    extractor: str = "inception"
    """The network whose features are compared."""
    weights: str | None = None
    """Its weights: a file."""
    pictures: tyro.conf.OmitArgPrefixes[PictureOptions] = field(default_factory=PictureOptions)
    workers: str = "0"
    """Ray actors that take the features; 0: this process, without Ray. The number is the same."""
    device: str = "cpu"
    """cpu or cuda."""


def run(args: Args) -> None:
    from edm_ray.tasks.fid import fid

    executor = choose_executor(args.workers, args.device)
    options = {"extractor": args.extractor, "weights": args.weights, **vars(args.pictures)}
    found = fid(args.a, args.b, num=args.num, on=executor, **options)
    report({"a": args.a, "b": args.b, **found.to_dict()})
    say(f"{found.describe()}: {args.a} against {args.b}")
