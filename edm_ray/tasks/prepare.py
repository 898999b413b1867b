"""Prepare: a source of pictures or latents becomes a data set, sharded Parquet with a manifest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from edm_ray.data import plan as data_plan
from edm_ray.data.claim import claim, is_complete, refuse_other
from edm_ray.data.importers.detect import BUILT_IN, detect_kind
from edm_ray.data.importers.pictures import PictureOptions
from edm_ray.data.importers.source import KindError, SourceSpec
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.plan import Plan, PlanOptions, make_plan
from edm_ray.errors import InputError
from edm_ray.execution.executor import Executor, OnProgress, no_progress
from edm_ray.execution.local import Local
from edm_ray.storage import uris
from edm_ray.storage.lease import hold
from edm_ray.tasks.options import read_options

CROPPED = ("photographs", "more-photographs")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a source is read and how the data set is laid out."""

    kind: str | None = None
    """Kind of SOURCE, if it is not to be detected: folder, zip, cifar, idx, parquet, tar, npz."""
    pictures: PictureOptions = field(default_factory=PictureOptions)
    split: str = "train"
    """Which part of a source that has several (CIFAR, MNIST, Parquet folders); also the first word of the output's file
    names."""
    image_column: str | None = None
    """Parquet column, npz array or tar extension with the pictures, if there are several candidates."""
    label_column: str | None = None
    """Parquet column, npz array, JSON key or CIFAR table (fine_labels, coarse_labels) with the labels."""
    unlabelled: bool = False
    """Leave labels out."""
    on_error: Literal["raise", "skip"] = "raise"
    """raise: stop at a record that cannot be used; skip: leave such records out, and list them here and in the
    manifest."""
    encoding: Literal["png", "raw"] = "png"
    """png: as in Hugging Face image data sets; raw: plain pixels, larger and much faster to read."""
    codec: Literal["pixels", "latents", "haar"] = "pixels"
    """latents: SOURCE is a .npz or .npy of float16 or float32 [N, C, R, R] that an encoder made; haar: turn pictures
    into latents by the 2x2 Haar transform, which loses nothing."""
    decoder: str | None = None
    """With --codec latents: name of the decoder that turns them into pictures."""
    scale: float = 0.5
    """Latents: scale each channel to this standard deviation for training (sigma_data)."""
    shards: int | None = None
    """Number of Parquet files; without it, files of about --shard-mib."""
    shard_mib: float = 64.0
    """Size of a Parquet file in MiB; small data sets still have 4 files."""
    num: int = 10_000
    """Number of crops, for `photographs` and `more-photographs`."""


@dataclass(frozen=True, kw_only=True)
class PrepareTask:
    """One data set that was planned; `run` writes it."""

    source: str
    dest: str
    plan: Plan
    notes: tuple[str, ...]
    """What was found in the source and is worth saying."""

    def describe(self) -> str:
        plan = self.plan
        return f"would write {plan.records:,} records of {plan.source.uri} as {plan.num_shards} shards to {self.dest}"

    @property
    def is_there(self) -> bool:
        """Whether DEST holds this data set already. Raises InputError when it holds another one."""
        if not is_complete(self.dest):
            return False
        there = open_dataset(self.dest)
        if there.source:
            refuse_other(self.dest, there.source, self.plan)
        return True

    def run(self, on: Executor, on_shard: OnProgress = no_progress) -> DataSet:
        """Shards that are written are kept: the same call resumes."""
        if self.is_there:
            return open_dataset(self.dest)
        with hold(self.dest, "prepare"):
            claim(self.dest, self.plan)
            return data_plan.prepare(self.dest, self.plan, on, on_shard)


def plan_prepare(source: str, dest: str, options: PrepareOptions) -> list[PrepareTask]:
    """Look at the source; one task a data set (`digits` has two). Raises InputError for what cannot be read."""
    _refuse_inside(source, dest)
    try:
        kind = options.kind or ("latents" if options.codec == "latents" else detect_kind(source))
    except KindError as error:
        raise _with_what_follows(error, source, dest, options) from error
    if kind == "digits":
        splits = [(split, uris.join(dest, split), f"digits {split}") for split in ("train", "heldout")]
        return [_plan(source, kind, split, place, name, options) for split, place, name in splits]
    return [_plan(source, kind, options.split, dest, None, options)]


def _with_what_follows(error: KindError, source: str, dest: str, options: PrepareOptions) -> InputError:
    """What is wrong with the pictures of a folder that has other things too."""
    try:
        _plan(source, "folder", options.split, dest, None, options)
    except InputError as more:
        return InputError(f"{error}. As --kind folder: {more}")
    return InputError(f"{error}, for example --kind folder")


def _refuse_inside(source: str, dest: str) -> None:
    """Written below its source, a data set would be part of the source the next time."""
    if source in BUILT_IN or not uris.exists(source) or not uris.is_folder(source):
        return
    inside, outside = f"{uris.resolve(dest)}/", f"{uris.resolve(source)}/"
    if inside != outside and inside.startswith(outside):
        raise InputError(f"{dest}: lies inside of the source {source}; choose a place outside of it")


def _plan(source: str, kind: str, split: str, dest: str, name: str | None, options: PrepareOptions) -> PrepareTask:
    crops = kind in CROPPED
    spec = SourceSpec(
        uri=source if kind in BUILT_IN else uris.absolute(source),
        kind=kind,
        split=split,
        image_column=options.image_column,
        label_column=options.label_column,
        unlabelled=options.unlabelled,
        resolution=options.pictures.resolution if crops else None,
        crops=options.num if crops else 0,
    )
    layout = PlanOptions(
        on_error=options.on_error,
        encoding=options.encoding,
        shards=options.shards,
        shard_mib=options.shard_mib,
        name=name,
        codec=options.codec,
        decoder=options.decoder,
        scale=options.scale,
    )
    plan, notes = make_plan(spec, options.pictures, layout)
    return PrepareTask(source=source, dest=uris.absolute(dest), plan=plan, notes=notes)


def prepare(
    source: str,
    out: str,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    on_shard: OnProgress = no_progress,
    **options: Any,
) -> DataSet:
    """A data set from a folder of pictures, a zip, CIFAR or MNIST files, Parquet, tar shards or npz.

    source: a path or s3:// URI, or `digits` (writes OUT/train and OUT/heldout; OUT/train is returned). options: fields
    of `PrepareOptions` and of `PictureOptions`, e.g. ``resolution=32, unlabelled=True``. The same call resumes.
    Raises InputError (a ValueError) for what cannot be read.
    """
    of_pictures = {each.name for each in dataclasses.fields(PictureOptions)}
    pictures = read_options(PictureOptions, {name: options.pop(name) for name in of_pictures & set(options)})
    tasks = plan_prepare(source, out, read_options(PrepareOptions, {"pictures": pictures, **options}))
    first, *_ = [task.run(on, on_shard) for task in tasks]
    return first
