"""Tar shards: WebDataset (``key.png`` with ``key.cls`` or ``key.json``), or a plain tar of class folders.

One file, or a folder of them, gzipped or not. Only headers and labels are read when listing; nothing is extracted.
"""

from __future__ import annotations

import bisect
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from edm_ray.data.importers.files import is_folder, is_hidden, list_tree, open_unpacked
from edm_ray.data.importers.listing import is_picture, list_pictures
from edm_ray.data.importers.source import Record, RecordError, SourceSpec, check_names, fingerprint, label_table
from edm_ray.errors import InputError
from edm_ray.storage import uris

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_KEYS = ("label", "cls", "class")
MAX_LABEL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    offset: int
    size: int


class Tar:
    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        names = [n for n in list_tree(spec.uri) if n.lower().endswith(SUFFIXES)] if is_folder(spec.uri) else [""]
        self.files = [uris.join(spec.uri, name) if name else spec.uri for name in names]
        if len(self.files) > 1 and (part := [f for f in self.files if _in_split(f, spec.split)]):
            self.files = part
        self._open: tuple[int, IO[bytes]] | None = None
        self.members: list[Member] = []
        self.first: list[int] = []
        self.notes: tuple[str, ...] = ()
        values: list[int | str | None] = []
        aside = 0
        for number in range(len(self.files)):
            self.first.append(len(self.members))
            for group in self._groups(number):
                pictures = [m for m in group.values() if is_picture(m.name)]
                if spec.image_column is not None:
                    pictures = [m for ext, m in group.items() if ext == spec.image_column.lstrip(".").lower()]
                if len(pictures) > 1:
                    raise InputError(
                        f"{self.files[number]}: {pictures[0].name} and {pictures[1].name} are pictures of one sample; "
                        "say which with --image-column EXTENSION"
                    )
                if not pictures:
                    aside += 1
                    continue
                self.members.append(pictures[0])
                values.append(None if spec.unlabelled else self._label(number, group))
        if not self.members:
            raise InputError(
                f"{spec.uri}: no pictures in it; WebDataset samples are key.png (or .jpg ...) with key.cls"
            )
        if aside:
            self.notes += (f"{aside:,} entries without a picture are left aside",)
        self._classes(values)
        listed = [(m.name, m.offset, m.size) for m in self.members]
        self.fingerprint = fingerprint("tar", listed, self.labels.tolist(), self.class_names)

    def _classes(self, values: list[int | str | None]) -> None:
        self.class_names: tuple[str, ...] = ()
        self.labels, _ = label_table([0] * len(values), self.spec.uri)
        if self.spec.unlabelled:
            return
        if any(value is not None for value in values):
            self.labels, self.class_names = label_table(values, self.spec.uri)
            return
        # No labels of WebDataset: a plain tar of folders, then.
        listing = list_pictures([m.name for m in self.members], self.spec.uri, None, unlabelled=False, unwrap=True)
        by_name = dict(zip(listing.names, listing.labels.tolist()))
        self.labels, _ = label_table([by_name[m.name] for m in self.members], self.spec.uri, listing.class_names)
        self.class_names = listing.class_names
        self.notes += listing.notes

    def _handle(self, number: int) -> IO[bytes]:
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
            self._open = (number, open_unpacked(self.files[number]))
        return self._open[1]

    def _groups(self, number: int) -> Iterator[dict[str, Member]]:
        """Members of one sample by extension, in the order of first appearance; key = path up to the first dot of the
        file name, as in WebDataset."""
        where = self.files[number]
        groups: dict[str, dict[str, Member]] = {}
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
                        raise InputError(f"{where}: {info.name!r} is a link or a device, not a file; refused")
                    folder, _, base = name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    group = groups.setdefault(f"{folder}/{stem}", {})
                    group.setdefault(extension.lower(), Member(name, info.offset_data, info.size))
        except tarfile.TarError as error:
            raise InputError(f"{where}: damaged or not a tar: {error}") from error
        check_names(names, where)
        yield from groups.values()

    def _label(self, number: int, group: dict[str, Member]) -> int | str | None:
        column = self.spec.label_column
        if (cls := group.get("cls")) is not None and column is None:
            text = self._read(number, cls, MAX_LABEL_BYTES).decode(errors="replace").strip()
            return int(text) if text.lstrip("-").isdigit() and len(text) < 18 else text or None
        if (table := group.get("json")) is None:
            return None
        where = f"{self.files[number]}: {table.name}"
        try:
            values = json.loads(self._read(number, table, MAX_LABEL_BYTES))
        except ValueError as error:
            raise InputError(f"{where}: not JSON: {error}") from error
        keys = LABEL_KEYS if column is None else (column,)
        value = next((values[key] for key in keys if isinstance(values, dict) and key in values), None)
        if value is not None and (type(value) not in (int, str) or (type(value) is int and abs(value) >= 2**62)):
            raise InputError(f"{where}: the label is {str(value)[:40]!r}; a whole number or a text is needed")
        return value

    def _read(self, number: int, member: Member, limit: int) -> bytes:
        if member.size > limit:
            raise RecordError(f"{self.files[number]}: {member.name}: {member.size:,} bytes, at most {limit:,} are read")
        handle = self._handle(number)
        handle.seek(member.offset)
        content = handle.read(member.size)
        if len(content) != member.size:
            raise RecordError(f"{self.files[number]}: {member.name}: the tar ends inside it")
        return content

    def __len__(self) -> int:
        return len(self.members)

    def record(self, index: int) -> Record:
        number = bisect.bisect_right(self.first, index) - 1
        member = self.members[index]
        name = member.name if len(self.files) == 1 else f"{self.files[number].rsplit('/', 1)[-1]}/{member.name}"
        return Record(name, int(self.labels[index]), self._read(number, member, 1 << 30))


def _in_split(path: str, split: str) -> bool:
    return split in path.rsplit("/", 1)[-1].replace(".", "-").replace("_", "-").split("-")
