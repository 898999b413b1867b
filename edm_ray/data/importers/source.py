"""What every importer gives: a list of records that is cheap to make, and each record read only when asked for.

A source is described by a `SourceSpec`, which is small, picklable and JSON; `open_source` (detect.py) opens it, on any
node and as often as needed. Memory holds the listing (names, labels), never the pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edm_ray.data.format import Labels
from edm_ray.errors import InputError, shortened

NO_LABEL = int(np.iinfo(np.int64).min)
"""A label that is null; refused when its record is read."""
MAX_CLASSES = 100_000
PICTURE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PICTURE_SUFFIXES += (".pgm", ".ppm", ".pnm")


class RecordError(InputError):
    """One record cannot be used; the message names its file (and row) and the reason. `skip` leaves the record out."""

    def __init__(self, message: str, change: Mapping[str, Any] | None = None) -> None:
        """change: options for pictures with which it could be used."""
        super().__init__(message)
        self.change = dict(change or {})


class LabelError(RecordError):
    """It is the record's label that cannot be used."""


class ListingError(InputError):
    """It is the labels of the listing that cannot be used; --unlabelled leaves them out."""


class KindError(InputError):
    """A folder may be of several kinds; --kind says which."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What to open. Fields that a kind does not know are left at their defaults."""

    uri: str
    """Absolute path, s3:// URI, or the name of a built-in source."""
    kind: str
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    unlabelled: bool = False
    """Leave labels out: one class, no names."""
    resolution: int | None = None
    """Of crops of photographs; other kinds resize later."""
    crops: int = 10_000


@dataclass(frozen=True)
class Record:
    name: str
    """Path in the source, or file and row."""
    label: int
    picture: bytes | np.ndarray
    """An encoded picture, or uint8 [C, H, W]; latents: float16 or float32 [C, R, R]."""


class Source(Protocol):
    class_names: tuple[str, ...]
    """Empty: no classes."""
    labels: Labels
    """int64 [N]; NO_LABEL where it is null. All 0 without classes."""
    fingerprint: str
    """Hash of the listing: tells whether a source is still the one that was planned with."""
    notes: tuple[str, ...]
    """What a person should know: files that are left aside, no labels found."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """Raises RecordError when this one record is unusable."""


def fingerprint(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse names that point outside (absolute, ``..``, drives, NUL) and names that come twice."""
    seen: set[str] = set()
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or (len(name) > 1 and name[1] == ":"):
            raise InputError(
                f"{where}: holds the name {shortened(name)}, which points outside of it; the archive is refused"
            )
        if name in seen:
            raise InputError(f"{where}: holds the name {shortened(name)} twice; remove one of the two")
        seen.add(name)


def shortened_list(names: Iterable[object], most: int = 12) -> str:
    """The first names of a list for a message."""
    texts = [str(name) if len(str(name)) <= 120 else f"{str(name)[:117]}..." for name in names]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def check_class_names(names: object, where: str) -> tuple[str, ...]:
    """Names of classes as a source says them. Raises InputError when they are no list of different texts."""
    if not isinstance(names, (list, tuple)):
        raise InputError(f"{where}: the names of its classes are a {type(names).__name__}; a list of texts is needed")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise InputError(
                f"{where}: class name {shortened(name)} is no text; give --unlabelled, or fix the metadata"
            )
        if name in seen:
            raise InputError(
                f"{where}: two classes are named {shortened(name)}; give --unlabelled, or fix the metadata"
            )
        seen.add(name)
    return tuple(names)


def label_table(
    values: Sequence[int | str | None], where: str, class_names: Sequence[str] = ()
) -> tuple[Labels, tuple[str, ...]]:
    """Labels as found -> (int64 [N], class names). Null becomes NO_LABEL; what is out of range is left as it is and
    refused with its record. Text labels are numbered in sorted order; numbers without names are named "0".."max"."""
    known = [value for value in values if value is not None]
    if values and not known:
        raise InputError(f"{where}: every label is null; give --unlabelled to leave labels out")
    if any(isinstance(value, str) for value in known):
        different = {str(value) for value in known}
        names = tuple(class_names) or tuple(sorted(different))
        if len(names) > MAX_CLASSES:
            raise InputError(f"{where}: {len(names):,} different labels; is this a class? {_OTHER_LABELS}")
        number = {name: index for index, name in enumerate(names)}
        if unknown := sorted(different - number.keys()):
            raise InputError(
                f"{where}: label {shortened(unknown[0])} is not one of the classes {shortened_list(names)}"
            )
        return np.array([NO_LABEL if value is None else number[str(value)] for value in values], np.int64), names
    numbers = [int(value) for value in known]
    if numbers and all(number == -1 for number in numbers):
        raise InputError(f"{where}: every label is -1 (none is known); give --unlabelled to leave labels out")
    if numbers and max(numbers) >= MAX_CLASSES:
        raise InputError(f"{where}: labels go up to {shortened(max(numbers))}; is this a class? {_OTHER_LABELS}")
    if numbers and min(numbers) <= -MAX_CLASSES:
        raise InputError(f"{where}: labels go down to {shortened(min(numbers))}; is this a class? {_OTHER_LABELS}")
    result = np.array([NO_LABEL if value is None else int(value) for value in values], np.int64)
    names = tuple(class_names) or tuple(str(i) for i in range(max(numbers, default=0) + 1))
    if len(names) > MAX_CLASSES:
        raise InputError(f"{where}: {len(names):,} classes; is this a class? {_OTHER_LABELS}")
    return result, names


_OTHER_LABELS = "give --label-column NAME, or --unlabelled to leave labels out"


def check_label(label: int, class_names: Sequence[str], name: str) -> int:
    """The label, or RecordError when it is null or out of range. Without classes every label is 0."""
    if not class_names:
        return 0
    if label == NO_LABEL:
        raise LabelError(f"{name}: the label is null; give --unlabelled to leave labels out, or --on-error skip")
    if not 0 <= label < len(class_names):
        raise LabelError(f"{name}: label {label} is outside 0..{len(class_names) - 1}")
    return label
