"""Turn a source into a data set: sharded Parquet with a manifest.

SOURCE is `digits` (scikit-learn's handwritten digits; writes DEST/train and DEST/heldout) or a folder of pictures, one
subfolder a class (writes DEST)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from edm_ray.cli.console import say
from edm_ray.data.importers.digits import split_digits
from edm_ray.data.importers.folder import load_folder
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.write import write_dataset
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest


@dataclass(frozen=True)
class Args:
    source: Annotated[str, tyro.conf.Positional]
    """`digits`, or a folder of pictures."""
    dest: Annotated[str, tyro.conf.Positional]
    """Where the data set goes: a directory or s3://bucket/key."""
    resolution: int | None = None
    """Centre-crop pictures and resize them to this many pixels; without it they must be square and alike."""
    shards: int = 4
    """Number of Parquet files."""


def run(args: Args) -> None:
    if args.shards < 1:
        raise InputError(f"--shards {args.shards}: give 1 or more")
    if args.source == "digits":
        for split, (images, labels) in split_digits().items():
            uri = uris.join(args.dest, split)
            names = [str(digit) for digit in range(10)]
            _ready(uri) or write_dataset(
                uri, images, labels, names, name=f"digits {split}", split=split, num_shards=args.shards
            )
            _describe(open_dataset(uri))
        return
    if not Path(args.source).is_dir():
        raise InputError(f"{args.source}: neither `digits` nor a folder of pictures")
    if not _ready(args.dest):
        images, labels, classes, paths = load_folder(args.source, args.resolution)
        name = Path(args.source).absolute().name
        write_dataset(args.dest, images, labels, classes, name=name, split="train", names=paths, num_shards=args.shards)
    _describe(open_dataset(args.dest))


def _ready(uri: str) -> bool:
    """Whether a data set is there already; it is left as it is."""
    if read_manifest(uri) is None:
        return False
    say(f"{uri}: a data set is there already and is left as it is; delete it to write it anew")
    return True


def _describe(dataset: DataSet) -> None:
    classes = f"{len(dataset.class_names)} classes" if dataset.class_names else "no classes"
    std = ", ".join(f"{value:.2f}" for value in dataset.std)
    say(
        f"{dataset.uri}: {dataset.rows:,} images of {dataset.resolution}x{dataset.resolution}x{dataset.channels}, "
        f"{classes}, {len(dataset.shards)} shards; standard deviation {std} (what sigma_data should be near)"
    )
