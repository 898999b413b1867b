"""MNIST and its relatives: ``*-images-idx3-ubyte`` with ``*-labels-idx1-ubyte`` beside it, gzipped or not.

The file starts with two zero bytes, the type (8 = uint8), the number of dimensions, and the dimensions big-endian.
"""

from __future__ import annotations

import re
import struct
from typing import IO

import numpy as np

from edm_ray.data.importers.files import is_folder, list_tree, open_unpacked, readable
from edm_ray.data.importers.source import Record, SourceSpec, fingerprint, label_table, shortened_list
from edm_ray.data.importers.splits import choose_files, note_of_file
from edm_ray.errors import InputError
from edm_ray.storage import uris

IMAGES = re.compile(r"images[-.]idx3-ubyte(\.gz)?$", re.IGNORECASE)
UINT8 = 8


class Idx:
    def __init__(self, spec: SourceSpec) -> None:
        self.notes: tuple[str, ...]
        images, labels, self.notes = _find(spec)
        self.handle = open_unpacked(images)
        self.shape, self.start = _header(self.handle, images, 3)
        self.name = images.rsplit("/", 1)[-1]
        self.class_names: tuple[str, ...] = ()
        values: list[int | str | None] = [0] * self.shape[0]
        content = b""
        if not spec.unlabelled and labels is None:
            self.notes += (f"no labels beside {self.name}: no classes",)
        elif not spec.unlabelled and labels is not None:
            with open_unpacked(labels) as handle:
                shape, _ = _header(handle, labels, 1)
                content = handle.read()
            if shape[0] != self.shape[0]:
                raise InputError(f"{labels}: {shape[0]:,} labels for the {self.shape[0]:,} pictures of {images}")
            values = list(content)
        self.labels, classes = label_table(values, spec.uri)
        if content:
            self.class_names = classes
        # All of the file: a few megabytes, and two sets of digits have the same sizes.
        self.fingerprint = fingerprint("idx", self.shape, content, _digest(self.handle))

    def __len__(self) -> int:
        return self.shape[0]

    def record(self, index: int) -> Record:
        _, height, width = self.shape
        self.handle.seek(self.start + index * height * width)
        pixels = np.frombuffer(self.handle.read(height * width), np.uint8).reshape(1, height, width)
        return Record(f"{self.name} row {index}", int(self.labels[index]), pixels)


def _digest(handle: IO[bytes]) -> int:
    import zlib

    handle.seek(0)
    crc = 0
    while block := handle.read(1 << 20):
        crc = zlib.crc32(block, crc)
    return crc


def _find(spec: SourceSpec) -> tuple[str, str | None, tuple[str, ...]]:
    """Images and labels, either of which may be gzipped whatever the other is, and notes."""
    folder, _, single = spec.uri.rpartition("/")
    if is_folder(spec.uri):
        names = list(list_tree(spec.uri))
        folder = spec.uri
        found = [name for name in names if IMAGES.search(name)]
        chosen = choose_files(found, spec.split, spec.uri)
        if len(chosen.names) != 1:
            have = shortened_list(map(readable, chosen.names))
            raise InputError(
                f"{spec.uri}: {len(chosen.names)} files of idx images for --split {spec.split}: {have}; give one"
            )
        single, notes = chosen.names[0], chosen.notes
    else:
        notes = note_of_file(spec.uri, spec.split)
        names = [_labels_of(single)]
        names = [names[0], f"{names[0]}.gz", _without_gz(names[0])]
        names = [name for name in dict.fromkeys(names) if uris.exists(uris.join(folder, name))]
    stem = _without_gz(_labels_of(single)).lower()
    labels = [name for name in names if _without_gz(name).lower() == stem]
    return uris.join(folder, single), uris.join(folder, labels[0]) if labels else None, notes


def _labels_of(images: str) -> str:
    """``train-images-idx3-ubyte`` -> ``train-labels-idx1-ubyte``, in the letters' case."""
    folder, slash, base = images.rpartition("/")
    for old, new in (("images", "labels"), ("IMAGES", "LABELS"), ("idx3", "idx1"), ("IDX3", "IDX1")):
        base = base.replace(old, new)
    return folder + slash + base


def _without_gz(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


def _header(handle: IO[bytes], where: str, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Dimensions, and where the values start. The file must hold just as many."""
    head = handle.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, UINT8, dimensions]):
        raise InputError(f"{where}: not an idx file of uint8 in {dimensions} dimensions (it starts with {head[:4]!r})")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    start, size = handle.tell(), handle.seek(0, 2)
    expected = start + int(np.prod(shape, dtype=object))
    if size != expected:
        raise InputError(f"{where}: {size:,} bytes, {expected:,} are needed for {shape}: truncated or damaged")
    handle.seek(start)
    return shape, start
