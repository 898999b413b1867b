"""Describe a data set, check every byte of it, and draw some of its pictures, one class per row.

Names every damaged shard; the exit code is 2 if there is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from edm_ray.cli.console import Reports, report, say
from edm_ray.cli.prepare import facts
from edm_ray.cli.progress import Progress
from edm_ray.data.blocks import BlockOrder
from edm_ray.data.codec import stored_pictures
from edm_ray.data.decoders import find_decoder
from edm_ray.data.format import Pixels
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.verify import pooled_std, read_verified
from edm_ray.errors import InputError, IntegrityError, counted
from edm_ray.evaluation.grids import GAP_LEVEL, image_grid, with_names

CELL = 48
"""Pictures are enlarged to about so many pixels."""
MAX_CLASSES = 40
MOST_COLUMNS = 1000
EPOCHS = 4
"""Epochs over which reading is averaged."""


@dataclass(frozen=True)
class Args(Reports):
    dataset: Annotated[str, tyro.conf.Positional]
    """Directory or s3:// URI of a data set."""
    out: str | None = None
    """PNG file for a grid of pictures, one class per row. Latents need their decoder."""
    columns: int = 12
    """Pictures per row of the grid."""
    nodes: int = 1
    """Number of nodes: says how much each reads in an epoch of training."""
    lanes: int = 24
    """Number of lanes (--set order=blocks lanes=...) that --nodes assumes."""
    no_verify: bool = False
    """Read only the manifest, not the shards."""


def run(args: Args) -> None:
    if not 1 <= args.columns <= MOST_COLUMNS:
        raise InputError(f"--columns {args.columns}: give 1 or more, at most {MOST_COLUMNS}")
    for flag, value in (("--nodes", args.nodes), ("--lanes", args.lanes)):
        if value < 1:
            raise InputError(f"{flag} {value}: give 1 or more")
    dataset = open_dataset(args.dataset, rows_agree=False)
    _describe(dataset)
    _describe_reading(dataset, args.nodes, args.lanes)
    if args.out is not None and not dataset.codec.is_pixels:
        find_decoder(dataset.codec.decoder)  # before all is read
    drawn = Drawn(dataset, args.columns) if args.out is not None else None
    damaged = [] if args.no_verify and drawn is None else _read(dataset, drawn, verify=not args.no_verify)
    if drawn is not None and args.out is not None:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        drawn.picture().save(args.out)
        say(f"grid         {args.out}")
    report({**facts(dataset), "sigma_data": pooled_std(dataset), "damaged": damaged, "verified": not args.no_verify})
    if damaged:
        raise IntegrityError(
            f"{dataset.uri}: {len(damaged)} of {len(dataset.shards)} shards are damaged: {', '.join(damaged)}; "
            "restore them, or prepare the data set again"
        )
    if args.no_verify:
        say("verified     no (--no-verify)")
    else:
        say(f"verified     all {len(dataset.shards)} shards: sha256, page checksums, pictures, labels")


def _read(dataset: DataSet, drawn: Drawn | None, verify: bool) -> list[str]:
    """Read the shards (without ``verify`` only until enough is drawn); returns the names of damaged ones."""
    damaged = []
    progress = Progress("rows read")
    for shard in dataset.shards:
        if not verify and (drawn is None or drawn.is_full()):
            break
        try:
            images, labels = read_verified(dataset, shard)
        except InputError as error:
            say(f"DAMAGED      {error}")
            damaged.append(shard.name)
            continue
        if drawn is not None:
            drawn.add(images, labels)
        if verify:
            progress.update(shard.first_row + shard.rows, dataset.rows)
    return damaged


def _describe(dataset: DataSet) -> None:
    resolution, total = dataset.resolution, sum(entry["bytes"] for entry in dataset.files.values())
    say(f"data set     {dataset.name} at {dataset.uri}")
    say(f"identity     {dataset.hash}")
    codec = dataset.codec
    what = "pictures" if codec.is_pixels else f"latents ({codec.dtype}, decoder {codec.decoder})"
    say(f"rows         {dataset.rows:,} {what} of {resolution}x{resolution}x{dataset.channels}")
    rows = sorted(shard.rows for shard in dataset.shards)
    each = f"{rows[0]:,}" if rows[0] == rows[-1] else f"{rows[0]:,} to {rows[-1]:,}"
    groups = sum(len(shard.row_groups) for shard in dataset.shards)
    say(
        f"shards       {len(rows)} of {each} rows, {total / 2**20:,.1f} MiB in all, {total / dataset.rows:,.0f} bytes "
        f"a row, {groups} row groups, encoding {dataset.encoding}"
    )
    _describe_classes(dataset)
    stored = (dataset.mean, dataset.std) if codec.is_pixels else (codec.mean, codec.std)
    for label, values in zip(("mean", "std"), stored):
        unit = "in [-1, 1]" if codec.is_pixels else "as stored"
        say(f"{label:<12} {', '.join(f'{v:.4f}' for v in values)}   (each channel, {unit})")
    if not codec.is_pixels:
        say(f"trained on   (latent - mean) / std * {codec.scale:g}, each channel: sigma_data is {codec.scale:g}")
    pooled = pooled_std(dataset)
    near = "the usual 0.5 is near enough" if 0.4 <= pooled <= 0.6 else "set it: denoiser.preconditioning.sigma_data"
    say(f"sigma_data   {pooled:.2f} fits these data ({near})")
    if dataset.source:
        source = dataset.source.get("source", {})
        say(f"source       {source.get('kind')} {source.get('uri')}")
    if dataset.skipped.count:
        skipped = counted(dataset.skipped.count, "record")
        say(f"skipped      {skipped} of the source; the first: {dataset.skipped.first[0]}")


def _describe_reading(dataset: DataSet, nodes: int, lanes: int) -> None:
    """Bytes that a node reads from storage, in both orders, and the room that they need in its cache."""
    sizes = [dataset.files[shard.name]["bytes"] for shard in dataset.shards]
    decoded = dataset.rows * math.prod(dataset.row_shape)
    say(f"order rows   each node reads {_mib(sum(sizes))} once, and keeps {_mib(decoded)} decoded")
    if lanes > len(sizes):
        say(f"order blocks does not fit: {lanes} lanes (--lanes) need as many shards, there are {len(sizes)}")
        return
    order = BlockOrder(tuple(shard.rows for shard in dataset.shards), lanes)
    ranks = min(nodes, lanes)
    times = np.array([order.amplification(sizes, epoch, 0, ranks) for epoch in range(EPOCHS)])
    kept = min(1.0, (order.block_shards + 1) * lanes / ranks / len(sizes))
    read = _mib(times.mean() * sum(sizes) / ranks)
    say(
        f"order blocks each of {ranks} nodes reads {read} an epoch, {times.mean():.2f} "
        f"times its share (at most {times.max():.2f}, {lanes} lanes), and keeps {_mib(kept * decoded)} decoded"
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def _describe_classes(dataset: DataSet) -> None:
    names, counts = dataset.class_names, dataset.class_counts
    if not names:
        say("classes      none")
        return
    if len(counts) != len(names):
        say(f"classes      {len(names)}: {', '.join(names[:20])}")
        return
    say(f"classes      {len(names)}, of {min(counts):,} to {max(counts):,} pictures")
    if empty := dataset.empty_classes:
        which = ", ".join(map(str, empty[:20]))
        without = f"{counted(len(empty), 'class', 'classes')} without pictures ({which})"
        say(f"WARNING      {without}: not trained, and drawn only if you ask for it by number")
    for name, count in list(zip(names, counts))[:MAX_CLASSES]:
        say(f"  {count:>9,}  {name}")
    if len(names) > MAX_CLASSES:
        say(f"  ... and {len(names) - MAX_CLASSES:,} more")


class Drawn:
    """The first pictures of each class, as they come by. Without classes all rows of the grid are one class."""

    def __init__(self, dataset: DataSet, columns: int) -> None:
        self.names = [*dataset.class_names[:MAX_CLASSES]]
        self.columns = columns
        self.room = [columns] * len(self.names) if self.names else [columns * 8]
        counts = dataset.class_counts or (dataset.rows,) * len(self.room)
        self.wanted = [min(room, count) for room, count in zip(self.room, counts)]
        self.pictures: list[list[Pixels]] = [[] for _ in self.room]
        self.codec = dataset.codec

    def is_full(self) -> bool:
        return all(len(have) >= want for have, want in zip(self.pictures, self.wanted))

    def add(self, images: Pixels, labels: np.ndarray) -> None:
        for label, have in enumerate(self.pictures):
            if (space := self.room[label] - len(have)) > 0:
                have += [image.copy() for image in images[labels == label][:space]]

    def picture(self) -> Image.Image:
        """Rows of enlarged pictures; the class names to their left."""
        shown = [[*stored_pictures(np.stack(have), self.codec)] if have else [] for have in self.pictures]
        shape = next((have[0].shape for have in shown if have), (1, CELL, CELL))
        missing = np.full(shape, GAP_LEVEL, np.uint8)
        rows = [have + [missing] * (-len(have) % self.columns or 0) for have in shown]
        rows = [row or [missing] * self.columns for row in rows]
        scale = max(1, -(-CELL // shape[1]))
        grid = image_grid(np.stack([image for row in rows for image in row]), self.columns, scale, gap=2)
        if not self.names:
            return grid
        return with_names(grid, self.names, shape[1] * scale + 2)
