"""Where sampled images go: a folder of PNG files, a zip as NVlabs lay theirs out, or a Parquet data set.

Each may be local or on S3. Images are given in any number of parts, so memory does not grow with their number (except
for a zip on S3: it is made in a temporary file and sent in one piece). A zip and a data set exist when they are whole;
a folder grows file by file.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edm_ray.data.format import Labels, Pixels
from edm_ray.data.write import (
    RowFormat,
    ShardEntry,
    build_shard,
    publish_dataset,
    save_shard,
    shard_edges,
    shard_name,
)
from edm_ray.errors import InputError, shortened
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST

IMAGES_PER_SHARD = 10_000
SAMPLE, MAX_SAMPLE_BYTES = re.compile(r"seed\d{8,}\.png"), 256 << 20
# The earliest time a zip knows: equal images give equal bytes.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


class Output(Protocol):
    """Takes images in parts; `finish` makes the whole valid."""

    def add(self, seeds: Labels, labels: Labels, images: Pixels) -> None:
        """seeds int64 [B], labels int64 [B] (0 without classes), images uint8 [B, C, H, W]."""

    def finish(self) -> None: ...

    def abandon(self) -> None:
        """Leave nothing half-made behind."""


class PngFolder:
    """``seed00000012.png`` for each image, with what made it in the PNG's text."""

    def __init__(self, folder: str, about: dict[str, str]) -> None:
        self.folder, self.about = uris.absolute(folder), about
        require_no_other_samples(self.folder, about)
        if not uris.is_remote(folder):
            Path(self.folder).mkdir(parents=True, exist_ok=True)

    def add(self, seeds: Labels, labels: Labels, images: Pixels) -> None:
        uris.may_write(self.folder)
        for seed, image in zip(seeds.tolist(), images, strict=True):
            name, content = f"seed{seed:08d}.png", png(image, {**self.about, "seed": str(seed)})
            if uris.is_remote(self.folder):
                uris.write_bytes(uris.join(self.folder, name), content)
            else:  # without waiting for the disk at every picture, but never half a picture
                part = Path(self.folder) / f".{name}.part"
                try:
                    with uris.naming(Path(self.folder) / name):
                        part.write_bytes(content)
                    part.replace(Path(self.folder) / name)
                finally:
                    part.unlink(missing_ok=True)

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


def require_no_other_samples(folder: str, about: dict[str, str]) -> None:
    """Raises InputError for a folder with samples of another model or sampler: nobody could tell them apart."""
    if not (names := [name for name in uris.list_names(folder) if SAMPLE.fullmatch(name)]):
        return
    try:
        with Image.open(io.BytesIO(uris.read_bytes(uris.join(folder, names[-1]), MAX_SAMPLE_BYTES))) as picture:
            found = {str(key): str(value) for key, value in picture.info.items()}
    except (OSError, ValueError) as error:
        raise InputError(f"--out {folder}: {names[-1]} is no sample ({error}); give another place") from error
    if differs := sorted(name for name in about if found.get(name) != about[name]):
        what = "; ".join(f"{name}: {shortened(found.get(name, '?'))} -> {shortened(about[name])}" for name in differs)
        raise InputError(
            f"--out {folder}: holds samples of another model or sampler ({what}); give another place, or delete them"
        )


class PngZip:
    """``00000/img00000012.png`` (the number is the seed), stored without compression, and ``dataset.json`` with the
    labels: what the dataset_tool.py of NVlabs writes, and what `edm-ray prepare` and their fid.py read."""

    def __init__(self, uri: str, has_classes: bool, about: dict[str, str]) -> None:
        self.uri, self.has_classes = uris.absolute(uri), has_classes
        if uris.is_remote(uri):
            self.part = Path(tempfile.mkdtemp()) / "samples.zip"
        else:
            path = Path(self.uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.part = path.with_name(f".{path.name}.part")
        self.archive = zipfile.ZipFile(self.part, "w", compression=zipfile.ZIP_STORED)
        self.archive.comment = json.dumps(about, sort_keys=True).encode()[:65535]
        self.labels: list[list[object]] = []

    def add(self, seeds: Labels, labels: Labels, images: Pixels) -> None:
        for seed, label, image in zip(seeds.tolist(), labels.tolist(), images, strict=True):
            number = f"{seed:08d}"
            name = f"{number[:5]}/img{number}.png"
            with uris.naming(self.uri):
                self.archive.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), png(image, {}))
            self.labels.append([name, label])

    def finish(self) -> None:
        table = {"labels": self.labels if self.has_classes else None}
        with uris.naming(self.uri):
            self.archive.writestr(zipfile.ZipInfo("dataset.json", ZIP_EPOCH), json.dumps(table))
            self.archive.close()
        if uris.is_remote(self.uri):
            try:
                uris.write_bytes(self.uri, self.part.read_bytes())
            finally:
                self._forget()
        else:
            self.part.replace(self.uri)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # its directory does not fit on a full disk either
            self.archive.close()
        self._forget()

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        if uris.is_remote(self.uri):
            self.part.parent.rmdir()


class ParquetSet:
    """A data set like those of `edm-ray prepare`: shards of 10,000 images, the manifest last."""

    def __init__(
        self, uri: str, count: int, class_names: Sequence[str], about: dict[str, str], per_shard: int = IMAGES_PER_SHARD
    ) -> None:
        uri = uris.absolute(uri)
        require_no_dataset(uri)
        self.uri, self.class_names, self.about = uri, tuple(class_names), about
        self.edges = shard_edges(count, max(1, -(-count // per_shard)))
        self.rows: list[tuple[str, int, Pixels]] = []
        self.entries: list[ShardEntry] = []
        self.shape: tuple[int, int, int] | None = None

    def add(self, seeds: Labels, labels: Labels, images: Pixels) -> None:
        self.shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        for seed, label, image in zip(seeds.tolist(), labels.tolist(), images, strict=True):
            self.rows.append((f"seed{seed:08d}.png", label if self.class_names else 0, image))
            index = len(self.entries)
            if len(self.rows) == self.edges[index + 1] - self.edges[index]:
                self._write()

    def _row_format(self) -> RowFormat:
        assert self.shape is not None
        return RowFormat(class_names=self.class_names, shape=self.shape, encoding="png")

    def _write(self) -> None:
        name = shard_name("samples", len(self.entries), len(self.edges) - 1)
        content, entry = build_shard(name, self.rows, self._row_format())
        save_shard(self.uri, content, entry)
        self.entries.append(entry)
        self.rows = []

    def finish(self) -> None:
        assert not self.rows
        publish_dataset(
            self.uri,
            self.entries,
            self._row_format(),
            name="samples",
            split="samples",
            source={"source": {"kind": "samples", "uri": self.about.get("model", "")}, **self.about},
        )

    def abandon(self) -> None:
        pass  # shards without a manifest are nothing, and are written over


def require_no_dataset(uri: str) -> None:
    """Raises InputError for a place that holds a data set, or anything else that has a manifest."""
    if uris.exists(uris.join(uri, MANIFEST)):
        raise InputError(f"--out {uri}: holds {MANIFEST} already; choose another place")


class Writing:
    """``with Writing(output):`` finishes it at the end, abandons it when something goes wrong."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def __enter__(self) -> Output:
        return self.output

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.output.finish()
        else:
            self.output.abandon()


def png(image: Pixels, text: dict[str, str]) -> bytes:
    """uint8 [C, H, W], C = 1 or 3 -> PNG with these text chunks."""
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
