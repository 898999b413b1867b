"""Tar shards: WebDataset (``key.png`` with ``key.cls`` or ``key.json``), or a plain tar of class folders.

One file, or a folder of them, gzipped or not, of which one split is taken (`splits`). Only headers and labels are read
when listing; nothing is extracted.
"""

from __future__ import annotations

import bisect
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from edm_ray.data.importers.files import is_folder, is_hidden, lfs_hint, list_tree, open_unpacked, readable
from edm_ray.data.importers.listing import DATASET_JSON, is_picture, list_pictures
from edm_ray.data.importers.source import Record, RecordError, SourceSpec, check_names, fingerprint, label_table
from edm_ray.data.importers.splits import choose_files, choose_folders, note_of_file
from edm_ray.errors import InputError, counted, shortened
from edm_ray.storage import uris
from edm_ray.storage.documents import load_json, shortened_error

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_KEYS = ("label", "cls", "class")
MAX_LABEL_BYTES = 1 << 20
MAX_TABLE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    offset: int
    size: int


class Tar:
    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        self.notes: tuple[str, ...] = ()
        self.files = self._files()
        self._open: tuple[int, IO[bytes]] | None = None
        self.members: list[Member] = []
        self.first: list[int] = []
        self.table: Member | None = None
        values: list[int | str | None] = []
        aside = []
        for number in range(len(self.files)):
            self.first.append(len(self.members))
            for sample in self._samples(number):
                if (picture := self._picture(number, sample)) is None:
                    aside.append(sample[0].name)
                    continue
                self.members.append(picture)
                values.append(None if spec.unlabelled else self._label(number, sample, picture))
        if not self.members:
            raise InputError(
                f"{spec.uri}: no pictures in it; WebDataset samples are key.png (or .jpg ...) with key.cls"
            )
        if aside:
            entries = counted(len(aside), "entry", "entries")
            self.notes += (f"ignored {entries} without a picture (the first: {readable(aside[0])})",)
        values = self._one_split(values)
        self._classes(values)
        listed = [(m.name, m.offset, m.size) for m in self.members]
        self.fingerprint = fingerprint("tar", listed, self.labels.tolist(), self.class_names)

    def _files(self) -> list[str]:
        spec = self.spec
        if not is_folder(spec.uri):
            self.notes += note_of_file(spec.uri, spec.split)
            return [spec.uri]
        names = [name for name in list_tree(spec.uri) if name.lower().endswith(SUFFIXES)]
        if not names:
            raise InputError(f"{spec.uri}: no {', '.join(SUFFIXES)} files in it")
        chosen = choose_files(names, spec.split, spec.uri)
        self.notes += chosen.notes
        return [uris.join(spec.uri, name) for name in chosen.names]

    def _picture(self, number: int, sample: list[Member]) -> Member | None:
        """The picture of a sample. Raises InputError where there are several."""
        pictures = [member for member in sample if is_picture(member.name)]
        if (asked := self.spec.image_column) is not None:
            extension = asked.lstrip(".").lower()
            pictures = [m for m in sample if extension in (_extension(m.name), m.name.rpartition(".")[2].lower())]
        if len(pictures) > 1:
            raise InputError(
                f"{self.files[number]}: {readable(pictures[0].name)} and {readable(pictures[1].name)} are pictures of "
                "one sample; say which with --image-column EXTENSION"
            )
        return pictures[0] if pictures else None

    def _one_split(self, values: list[int | str | None]) -> list[int | str | None]:
        """The members of one split, where the top folders in the tars are splits."""
        prefix, notes = choose_folders([member.name for member in self.members], self.spec.split, self.spec.uri)
        self.notes += notes
        if not prefix:
            return values
        kept = [index for index, member in enumerate(self.members) if member.name.startswith(prefix)]
        self.first = [bisect.bisect_left(kept, first) for first in self.first]
        self.members = [self.members[index] for index in kept]
        return [values[index] for index in kept]

    def _classes(self, values: list[int | str | None]) -> None:
        self.class_names: tuple[str, ...] = ()
        self.labels, _ = label_table([0] * len(values), self.spec.uri)
        if self.spec.unlabelled:
            return
        if any(value is not None for value in values):
            self.labels, self.class_names = label_table(values, self.spec.uri)
            return
        # No labels of WebDataset: a plain tar of folders, then.
        names = [member.name for member in self.members] + ([self.table.name] if self.table is not None else [])
        listing = list_pictures(names, self.spec, self._read_table, unwrap=True)
        by_name = dict(zip(listing.names, listing.labels.tolist()))
        self.labels, _ = label_table([by_name[m.name] for m in self.members], self.spec.uri, listing.class_names)
        self.class_names = listing.class_names
        self.notes += listing.notes

    def _read_table(self, name: str) -> bytes:
        assert self.table is not None
        return self._read(0, self.table, MAX_TABLE_BYTES)

    def _handle(self, number: int) -> IO[bytes]:
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
            self._open = (number, open_unpacked(self.files[number]))
        return self._open[1]

    def _samples(self, number: int) -> Iterator[list[Member]]:
        """Members of one sample, in the order of first appearance; key = path up to the first dot of the file name, as
        in WebDataset, unless each picture has a longer name of its own (``photo.0.png``, ``photo.1.png``)."""
        where = self.files[number]
        groups: dict[str, list[Member]] = {}
        names = []
        try:
            with tarfile.open(fileobj=self._handle(number), mode="r:") as archive:
                for info in archive:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                    name = info.name.removeprefix("./")
                    if info.isdir() or is_hidden(name):
                        continue
                    names.append(name)
                    if not info.isreg():
                        raise InputError(f"{where}: {shortened(info.name)} is a link or a device, not a file; refused")
                    folder, _, base = name.rpartition("/")
                    member = Member(name, info.offset_data, info.size)
                    if base.lower() == DATASET_JSON and len(self.files) == 1 and name.count("/") < 2:
                        self.table = member
                        continue
                    groups.setdefault(f"{folder}/{base.partition('.')[0]}", []).append(member)
        except (tarfile.TarError, ValueError, EOFError) as error:  # ValueError: damaged numbers in a header
            reason = shortened_error(error)
            raise InputError(f"{where}: damaged or not a tar: {reason}{lfs_hint(where)}") from error
        check_names(names, where)
        for group in groups.values():
            yield from _parted(group) if self.spec.image_column is None else [group]

    def _label(self, number: int, sample: list[Member], picture: Member) -> int | str | None:
        column, stem = self.spec.label_column, picture.name.rpartition(".")[0]

        def beside(extension: str) -> Member | None:
            own = [m for m in sample if m.name.lower() == f"{stem}.{extension}".lower()]
            return next(iter(own or [m for m in sample if _extension(m.name) == extension]), None)

        if (cls := beside("cls")) is not None and column is None:
            text = self._read(number, cls, MAX_LABEL_BYTES).decode(errors="replace").strip()
            return int(text) if re.fullmatch(r"-?[0-9]{1,17}", text) else text or None
        if (table := beside("json")) is None:
            return None
        where = f"{self.files[number]}: {readable(table.name)}"
        values = load_json(self._read(number, table, MAX_LABEL_BYTES), where)
        keys = LABEL_KEYS if column is None else (column,)
        value = next((values[key] for key in keys if isinstance(values, dict) and key in values), None)
        if value is not None and type(value) not in (int, str):
            raise InputError(f"{where}: the label is {shortened(value)}; a whole number or a text is needed")
        label: int | str | None = value
        return label

    def _read(self, number: int, member: Member, limit: int) -> bytes:
        if member.size > limit:
            raise RecordError(
                f"{self.files[number]}: {readable(member.name)}: {member.size:,} bytes, at most {limit:,} are read"
            )
        handle = self._handle(number)
        handle.seek(member.offset)
        content = handle.read(member.size)
        if len(content) != member.size:
            raise RecordError(f"{self.files[number]}: {readable(member.name)}: the tar ends inside it")
        return content

    def __len__(self) -> int:
        return len(self.members)

    def record(self, index: int) -> Record:
        number = bisect.bisect_right(self.first, index) - 1
        member = self.members[index]
        name = member.name if len(self.files) == 1 else f"{self.files[number].rsplit('/', 1)[-1]}/{member.name}"
        return Record(readable(name), int(self.labels[index]), self._read(number, member, 1 << 30))


def _extension(name: str) -> str:
    """All after the first dot of the file name, as WebDataset has it."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _parted(group: list[Member]) -> list[list[Member]]:
    """A group with several pictures as a sample each, where they share nothing: by their names up to the last dot, or,
    where there is nothing but pictures, one by one."""
    pictures = [member for member in group if is_picture(member.name)]
    if len(pictures) < 2:
        return [group]
    if len(pictures) == len(group):
        return [[member] for member in group]
    parts: dict[str, list[Member]] = {}
    for member in group:
        parts.setdefault(member.name.rpartition(".")[0], []).append(member)
    each = [sum(is_picture(member.name) for member in part) for part in parts.values()]
    return list(parts.values()) if all(count == 1 for count in each) else [group]
