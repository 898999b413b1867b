"""Turn a source into a data set: sharded Parquet with a manifest. The same command resumes.

SOURCE is `digits` (scikit-learn's handwritten digits; writes DEST/train and DEST/heldout), `photographs` (crops of the
two photographs scikit-learn ships), `more-photographs` (and of six of scikit-image's, where that is installed), or a
path or s3:// URI of: a folder of pictures (a class a subfolder, or dataset.json), a zip of pictures, CIFAR-10/100
python archives, MNIST idx files, Hugging Face style Parquet, tar shards (webdataset), or .npz; with --codec latents a
.npz or .npy of latents. The kind is seen from what is there; all is described in docs/data.md."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from edm_ray.cli.console import Progress, say
from edm_ray.cli.workers import choose_executor
from edm_ray.data.claim import claim, is_complete, refuse_other
from edm_ray.data.importers.detect import BUILT_IN, detect_kind
from edm_ray.data.importers.pictures import PictureOptions
from edm_ray.data.importers.source import SourceSpec
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.plan import PlanOptions, make_plan, prepare
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    source: Annotated[str, tyro.conf.Positional]
    """`digits`, `photographs`, `more-photographs`, or a path or s3:// URI."""
    dest: Annotated[str, tyro.conf.Positional]
    """Where the data set goes: a directory or s3://bucket/key."""
    kind: str | None = None
    """Say what SOURCE is instead of having it detected: folder, zip, cifar, idx, parquet, tar, npz."""
    pictures: tyro.conf.OmitArgPrefixes[PictureOptions] = field(default_factory=PictureOptions)
    split: str = "train"
    """Which part of sources that have several (CIFAR, MNIST, Parquet folders); also the first word of file names."""
    image_column: str | None = None
    """Parquet column, npz array or tar extension that holds the pictures, when it is not plain."""
    label_column: str | None = None
    """Parquet column, npz array, JSON key or CIFAR table (fine_labels, coarse_labels) that holds the labels."""
    unlabelled: bool = False
    """Leave labels out."""
    on_error: Literal["raise", "skip"] = "raise"
    """skip: leave out records that cannot be used; how many and which is said, and kept in the manifest."""
    encoding: Literal["png", "raw"] = "png"
    """png: what Hugging Face image data sets are; raw: plain pixels, larger and much faster to read."""
    codec: Literal["pixels", "latents", "haar"] = "pixels"
    """latents: SOURCE is a .npz or .npy of float16 or float32 [N, C, R, R] that an encoder made; haar: turn pictures
    into latents by the 2x2 Haar transform, which loses nothing."""
    decoder: str | None = None
    """With --codec latents: name of what makes pictures of them."""
    scale: float = 0.5
    """Latents: standard deviation that each channel is given for training (sigma_data)."""
    shards: int | None = None
    """Exactly so many Parquet files; without it, files of about --shard-mib."""
    shard_mib: float = 64.0
    """Size of a Parquet file; small sets have 4 files all the same."""
    crops: int = 10_000
    """Number of crops of `photographs` and `more-photographs`."""
    workers: str = "0"
    """Ray actors that write shards, on any node of the cluster; 0: this process, without Ray. The bytes are the
    same."""
    endpoint_url: str | None = None
    """Endpoint of an S3-compatible store, like AWS_ENDPOINT_URL."""
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    choose_executor(args.workers, "cpu")
    if args.endpoint_url is not None:
        os.environ["AWS_ENDPOINT_URL"] = args.endpoint_url
    kind = args.kind or ("latents" if args.codec == "latents" else detect_kind(args.source))
    if kind == "digits":
        for split in ("train", "heldout"):
            _prepare(args, kind, split, uris.join(args.dest, split), f"digits {split}")
    else:
        _prepare(args, kind, args.split, args.dest, None)


def _prepare(args: Args, kind: str, split: str, dest: str, name: str | None) -> None:
    crops = kind in ("photographs", "more-photographs")
    spec = SourceSpec(
        uri=args.source if kind in BUILT_IN else uris.absolute(args.source),
        kind=kind,
        split=split,
        image_column=args.image_column,
        label_column=args.label_column,
        unlabelled=args.unlabelled,
        resolution=args.pictures.resolution if crops else None,
        crops=args.crops if crops else 0,
    )
    options = PlanOptions(
        on_error=args.on_error,
        encoding=args.encoding,
        shards=args.shards,
        shard_mib=args.shard_mib,
        name=name,
        codec=args.codec,
        decoder=args.decoder,
        scale=args.scale,
    )
    plan, notes = make_plan(spec, args.pictures, options)
    for note in notes:
        say(f"{args.source}: {note}")
    if args.dry_run:
        say(f"would write {plan.records:,} records of {spec.uri} as {plan.num_shards} shards to {dest}")
        return
    if is_complete(dest):
        there = open_dataset(dest)
        if there.source:
            refuse_other(dest, there.source, plan)
        say(f"{dest}: a data set is there already and is left as it is; delete it to write it anew")
        _describe(there)
        return
    dest = uris.absolute(dest)
    claim(dest, plan)
    progress = Progress("records")
    progress.update(0, plan.records)
    _describe(prepare(dest, plan, choose_executor(args.workers, "cpu"), progress.update))


def _describe(dataset: DataSet) -> None:
    classes = f"{len(dataset.class_names)} classes" if dataset.class_names else "no classes"
    std = ", ".join(f"{value:.2f}" for value in dataset.std)
    what = "images" if dataset.codec.is_pixels else "latents"
    say(
        f"{dataset.uri}: {dataset.rows:,} {what} of {dataset.resolution}x{dataset.resolution}x{dataset.channels}, "
        f"{classes}, {len(dataset.shards)} shards; standard deviation {std} (what sigma_data should be near)"
    )
    if dataset.skipped.count:
        say(f"{dataset.uri}: {dataset.skipped.count:,} records were skipped:")
        for line in dataset.skipped.first[:10]:
            say(f"  {line}")
        if dataset.skipped.count > 10:
            say(f"  ... the first {len(dataset.skipped.first)} are listed in {uris.join(dataset.uri, 'manifest.json')}")
