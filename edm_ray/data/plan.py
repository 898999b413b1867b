"""Prepare a data set from a source, shard by shard: planned once, restartable, the same bytes however it is run.

A plan fixes everything that decides the bytes: the source and its fingerprint, what becomes of pictures, the shape,
the number of shards. Shard i then depends on (plan, i) alone. While it is under way ``DEST/.prepare/`` holds the plan
and an entry for each shard that is done; the manifest comes last, and `.prepare` goes.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from edm_ray.config.codec import check_scale
from edm_ray.config.load import validate
from edm_ray.data.complaints import Complaints, Refused, check_shape
from edm_ray.data.format import ENCODINGS, Pixels, encode
from edm_ray.data.importers.detect import open_source
from edm_ray.data.importers.pictures import PictureOptions, deep_range, to_pixels
from edm_ray.data.importers.source import (
    ListingError,
    Record,
    RecordError,
    Source,
    SourceSpec,
    check_class_names,
    check_label,
    shortened_list,
)
from edm_ray.data.manifest import DataSet
from edm_ray.data.write import (
    FIRST_SKIPPED,
    LatentOptions,
    RowFormat,
    ShardEntry,
    build_shard,
    disk_full_is_said,
    publish_dataset,
    save_shard,
    shard_edges,
    shard_name,
)
from edm_ray.errors import PLAIN_NAME, InputError, nearest, plain_name, shortened
from edm_ray.execution.executor import Executor, Item, Needs, OnProgress, no_progress
from edm_ray.storage import artifacts, uris
from edm_ray.storage.artifacts import Artifact, plain
from edm_ray.storage.commit import canonical_json, sha256

SIDECAR = ".prepare"
REFUSED = "refused"
"""A file beside the plan: a record was refused, so this plan cannot succeed."""
PROBED = 32
CODECS = ("pixels", "latents", "haar")
MIN_SHARDS = 4
"""Small data sets too are cut into so many, so that workers can share them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    source: SourceSpec
    pictures: PictureOptions
    on_error: Literal["raise", "skip"]
    encoding: str
    name: str
    records: int
    num_shards: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, R, R), of the first usable picture."""
    first: str
    """That picture's name."""
    fingerprint: str
    latents: LatentOptions | None = None

    @property
    def row_format(self) -> RowFormat:
        return RowFormat(class_names=self.class_names, shape=self.shape, encoding=self.encoding, latents=self.latents)

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


_open: dict[tuple[SourceSpec, str], Source] = {}
"""The source of the last plan, by its fingerprint too: a worker process lives longer than one `prepare`."""


def _opened(plan: Plan) -> Source:
    key = (plan.source, plan.fingerprint)
    if key not in _open:
        source = open_source(plan.source)
        if source.fingerprint != plan.fingerprint or len(source) != plan.records:
            raise InputError(
                f"{plan.source.uri}: changed since it was planned with; prepare it again, in another place"
            )
        _open.clear()
        _open[key] = source
    return _open[key]


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What becomes of the records."""

    on_error: Literal["raise", "skip"] = "raise"
    encoding: str = "png"
    """Of pictures; latents are always raw."""
    shards: int | None = None
    """Exactly so many; else as many as make files of about ``shard_mib``, and MIN_SHARDS at least."""
    shard_mib: float = 64.0
    name: str | None = None
    codec: str = "pixels"
    """"pixels"; "latents" (the source has them), or the name of a built-in encoder that makes latents of the pictures
    ("haar")."""
    decoder: str | None = None
    """What makes pictures of the source's latents."""
    scale: float = 0.5

    def check(self) -> None:
        if self.encoding not in ENCODINGS:
            raise InputError(f"--encoding {self.encoding}: give {' or '.join(ENCODINGS)}")
        if self.shards is not None and self.shards < 1:
            raise InputError(f"--shards {self.shards}: give 1 or more")
        if not 0 < self.shard_mib <= 1024:
            raise InputError(f"--shard-mib {self.shard_mib}: give more than 0 and at most 1024")


def make_plan(spec: SourceSpec, pictures: PictureOptions, options: PlanOptions) -> tuple[Plan, tuple[str, ...]]:
    """List the source, look at up to PROBED of its pictures, and decide shape and number of shards.

    Returns the plan and the source's notes.
    """
    options.check()
    pictures.check()
    if not plain_name(spec.split):
        raise InputError(f"--split {shortened(spec.split)} is not allowed: {PLAIN_NAME}")
    try:
        source = open_source(spec)
    except ListingError as error:
        raise _and_the_rest(error, dataclasses.replace(spec, unlabelled=True), pictures, options) from error
    if len(source) == 0:
        raise InputError(f"{spec.uri}: holds no records")
    latents = _latents(source, spec, pictures, options)
    encoding = options.encoding if latents is None else "raw"
    check_class_names(source.class_names, spec.uri)
    shape, first, row_bytes = _probe(source, pictures, latents, options.on_error, encoding, spec.uri)
    notes = (*source.notes, *_empty_classes(source), *_low_values(source, pictures))
    shards = options.shards or max(MIN_SHARDS, round(len(source) * row_bytes / (options.shard_mib * 2**20)))
    plan = Plan(
        source=spec,
        pictures=pictures,
        on_error=options.on_error,
        encoding=encoding,
        name=options.name or spec.uri.rstrip("/").rsplit("/", 1)[-1],
        records=len(source),
        num_shards=min(shards, len(source)),
        class_names=source.class_names,
        shape=shape,
        first=first,
        fingerprint=source.fingerprint,
        latents=latents,
    )
    _open.clear()
    _open[spec, source.fingerprint] = source
    return plan, notes


def _and_the_rest(error: InputError, without: SourceSpec, pictures: PictureOptions, options: PlanOptions) -> InputError:
    """What is wrong with the listing, and what would be once that is settled: people are told in one run."""
    try:
        make_plan(without, pictures, options)
    except InputError as more:
        return InputError(f"{error}. Then: {more}")
    return error


def _latents(source: Source, spec: SourceSpec, pictures: PictureOptions, options: PlanOptions) -> LatentOptions | None:
    """What the latents are, from what was asked for; None for pixels."""
    codec, decoder, scale = options.codec, options.decoder, options.scale
    if codec not in CODECS:
        raise InputError(f"--codec {codec}: unknown{nearest(codec, CODECS)}; there are: {', '.join(CODECS)}")
    if (codec == "latents") != (spec.kind == "latents"):
        raise InputError(f"{spec.uri}: latents are prepared with --codec latents, pictures with another; got {codec!r}")
    if codec == "pixels":
        if decoder is not None:
            raise InputError(f"--decoder {decoder} is for latents; give --codec latents too")
        return None
    check_scale(scale, "--scale")
    if codec != "latents":
        if decoder not in (None, codec):
            raise InputError(f"--decoder {decoder}: latents of --codec {codec} have the decoder {codec}; leave it out")
        return LatentOptions(dtype="float16", decoder=codec, scale=scale, encode=codec)
    if not decoder:
        raise InputError(
            "--codec latents: give --decoder NAME, the name of what makes pictures of them (`haar`, or one of an "
            "installed package; docs/data.md); it need not be installed here"
        )
    if pictures != PictureOptions():
        raise InputError("--codec latents: latents are taken as they are; options for pictures are not for them")
    return LatentOptions(dtype=source.dtype, decoder=decoder, scale=scale)  # type: ignore[attr-defined]


def _sample(record: Record, pictures: PictureOptions, latents: LatentOptions | None) -> np.ndarray:
    """What is stored of a record: uint8 [C, R, R], or floats for latents."""
    if latents is not None and not latents.encode:
        assert isinstance(record.picture, np.ndarray)
        return record.picture
    pixels = to_pixels(record, pictures)
    if latents is None:
        return pixels
    # torch takes a second to import; pixels do without.
    import torch

    from edm_ray.data.decoders import haar_encode

    try:
        encoded: np.ndarray = haar_encode(torch.from_numpy(pixels.copy())[None] / 127.5 - 1.0)[0].numpy()
    except InputError as error:
        raise RecordError(f"{record.name}: {error}") from error
    return encoded.astype(latents.dtype)


def _probe(
    source: Source, pictures: PictureOptions, latents: LatentOptions | None, on_error: str, encoding: str, where: str
) -> tuple[tuple[int, int, int], str, float]:
    """Shape and name of the first usable picture (among those looked at), and the mean bytes of an encoded one."""
    shape: tuple[int, ...] | None = None
    first, sizes, reasons = "", [], []
    for index in _probed(source):
        try:
            record = source.record(index)
            pixels = _sample(record, pictures, latents)
            if shape is None:
                shape, first = pixels.shape, record.name
            check_shape(pixels, record.name, shape, first)
            sizes.append(len(encode(pixels, encoding)) + len(record.name) + 16)
        except RecordError as error:
            if on_error == "raise":
                raise _refused(source, where, error, pictures, latents, source.class_names) from error
            reasons.append(str(error))
    if shape is None:
        raise InputError(f"{where}: none of {len(reasons)} pictures looked at can be used; the first: {reasons[0]}")
    return (shape[0], shape[1], shape[2]), first, float(np.mean(sizes))


def _probed(source: Source) -> list[int]:
    """The records that are looked at before anything is written."""
    numbers: list[int] = np.unique(np.linspace(0, len(source) - 1, PROBED).astype(int)).tolist()
    return numbers


def _refused(
    source: Source,
    where: str,
    error: RecordError,
    pictures: PictureOptions,
    latents: LatentOptions | None,
    class_names: Sequence[str],
) -> Refused:
    """A record that cannot be used ends it, with all else that is wrong."""
    sample = partial(_sample, latents=latents)
    return Complaints().look(source, pictures, sample, class_names).refusal(where, error)


def _empty_classes(source: Source) -> tuple[str, ...]:
    """A note on the classes that no record has: they keep their numbers."""
    labels = np.asarray(source.labels)
    counts = np.bincount(labels[(labels >= 0) & (labels < len(source.class_names))], minlength=len(source.class_names))
    empty = [f"{number}{'' if name == str(number) else f' ({name})'}" for number, name in enumerate(source.class_names)]
    empty = [text for text, count in zip(empty, counts) if not count]
    if not empty:
        return ()
    what = f"class {empty[0]} has" if len(empty) == 1 else f"{len(empty):,} classes have"
    which = "" if len(empty) == 1 else f": {shortened_list(empty)}"
    return (f"WARNING: {what} no pictures{which}; not trained, and drawn only if you ask for it by number",)


def _low_values(source: Source, pictures: PictureOptions) -> tuple[str, ...]:
    """A note when pictures of 16 bits use so little of their range that the high byte shows next to nothing."""
    if pictures.mode == "keep":
        return ()
    ranges = []
    for index in _probed(source):
        with suppress(Exception):  # one that cannot be read is named when it is read
            ranges.append(deep_range(source.record(index), pictures))
    found = [each for each in ranges if each is not None]
    if not found or (high := max(each[2] for each in found)) >= 1 << (found[0][0] - 1):
        return ()
    low, bits = min(each[1] for each in found), found[0][0]
    black = " (all black)" if high >> (bits - 8) == 0 else ""
    return (
        f"WARNING: pictures of {bits} bits have values {low:,} to {high:,} only of 0 to {(1 << bits) - 1:,} "
        f"({len(found)} looked at); what is kept is the high byte, 0 to {high >> (bits - 8)}{black}: scale them first",
    )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard of a plan, as an artefact: its entry. The Parquet file that it is of lies beside."""

    kind = "shard"
    plan: str
    """Hash of the plan."""
    index: int
    num_shards: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"plan": self.plan, "index": self.index}

    def __str__(self) -> str:
        return f"shard {self.index} of {self.num_shards}"


@dataclass(frozen=True, kw_only=True)
class PrepareShards:
    """The recipe of a data set's shards. Shard i depends on (plan, i) alone, so neither the number of workers nor a
    retry changes a byte."""

    dest: str
    plan: Plan

    @property
    def store(self) -> str:
        return uris.join(self.dest, SIDECAR)

    @property
    def needs(self) -> Needs:
        return Needs(what="prepare", memory=0, most=self.plan.num_shards)

    def shards(self) -> list[Shard]:
        plan = sha256(canonical_json(plain(self.plan.to_json())).encode())
        return [Shard(plan=plan, index=i, num_shards=self.plan.num_shards) for i in range(self.plan.num_shards)]

    def setup(self, device: str) -> PrepareShards:
        return self

    def make(self, item: Item) -> None:
        for shard in item:
            self._prepare(shard)

    def is_stored(self, artifact: Artifact) -> bool:
        """Its entry is there, and its file is still what was written."""
        if not artifacts.is_stored(self.store, artifact):
            return False
        entry = self.entry(artifact)
        try:
            content = uris.read_bytes(uris.join(self.dest, entry.name)) if entry.rows else b""
        except uris.NotFound:
            return False
        return len(content) == entry.bytes and sha256(content) == entry.sha256

    def entry(self, artifact: Artifact) -> ShardEntry:
        """Of a shard that is stored."""
        text = artifacts.read(self.store, artifact).notes["entry"]
        return validate(ShardEntry, json.loads(text), artifacts.path_of(self.store, artifact))

    def _prepare(self, shard: Shard) -> None:
        plan, index = self.plan, shard.index
        source = _opened(plan)
        edges = shard_edges(plan.records, plan.num_shards)
        skipped: list[str] = []
        rows = _rows(source, plan, edges[index], edges[index + 1], skipped)
        name = shard_name(plan.source.split, index, plan.num_shards)
        try:
            content, entry = build_shard(name, rows, plan.row_format)
        except Refused as error:
            uris.write_bytes(uris.join(self.store, REFUSED), str(error).encode())
            raise
        entry = dataclasses.replace(entry, skipped=len(skipped), skipped_first=skipped[:FIRST_SKIPPED])
        save_shard(self.dest, content, entry)
        with disk_full_is_said(self.store, "free some and run the same command again: finished shards are kept"):
            artifacts.write(self.store, shard, {}, entry=json.dumps(dataclasses.asdict(entry)))


def _rows(source: Source, plan: Plan, start: int, stop: int, skipped: list[str]) -> Iterator[tuple[str, int, Pixels]]:
    for read in _records(source, start, stop):
        try:
            record = read()
            yield record.name, check_label(record.label, plan.class_names, record.name), _fitting(record, plan)
        except RecordError as error:
            if plan.on_error == "raise":
                where, names = plan.source.uri, plan.class_names
                raise _refused(source, where, error, plan.pictures, plan.latents, names) from error
            skipped.append(str(error))


def _records(source: Source, start: int, stop: int) -> Iterator[Callable[[], Record]]:
    """A call for each record, in order. Where each record is a request of its own (a folder on S3) some are read ahead,
    as many as the source says by ``concurrent``."""
    ahead: int = getattr(source, "concurrent", 1)
    if ahead == 1:
        yield from (partial(source.record, index) for index in range(start, stop))
        return
    with ThreadPoolExecutor(ahead) as pool:
        window: deque[Future[Record]] = deque()
        for index in range(start, stop):
            window.append(pool.submit(source.record, index))
            if len(window) == ahead:
                yield window.popleft().result
        while window:
            yield window.popleft().result


def _fitting(record: Record, plan: Plan) -> Pixels:
    pixels = _sample(record, plan.pictures, plan.latents)
    check_shape(pixels, record.name, plan.shape, plan.first)
    return pixels


def prepare(dest: str, plan: Plan, executor: Executor, on_shard: OnProgress = no_progress) -> DataSet:
    """All shards where the executor works, then the manifest over them; ``on_shard(records done, records)``.

    The first InputError ends it; shards that are done stay.
    """
    recipe = PrepareShards(dest=dest, plan=plan)
    shards, edges, done = recipe.shards(), shard_edges(plan.records, plan.num_shards), 0
    with executor.open(recipe) as (preparing,):
        for index in preparing.make([(shard,) for shard in shards]):
            done += edges[index + 1] - edges[index]
            on_shard(done, plan.records)
    return finish(recipe)


def finish(recipe: PrepareShards) -> DataSet:
    """The manifest, over all entries in the order of their shards; then the sidecar goes."""
    dest, plan = recipe.dest, recipe.plan
    dataset = publish_dataset(
        dest,
        [recipe.entry(shard) for shard in recipe.shards()],
        plan.row_format,
        name=plan.name,
        split=plan.source.split,
        source=plan.to_json(),
    )
    uris.delete_directory(recipe.store)
    uris.clear_unfinished(dest)
    return dataset
