"""A zip of pictures: the data sets of NVlabs (``dataset.json``), or class folders. Nothing is extracted."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

from edm_ray.data.importers.files import lfs_hint, open_local, readable
from edm_ray.data.importers.listing import list_pictures
from edm_ray.data.importers.source import Record, RecordError, SourceSpec, check_names, fingerprint
from edm_ray.errors import InputError
from edm_ray.storage.documents import shortened_error

MAX_MEMBER_BYTES = 1 << 30
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    struct.error,
)
"""What Python's zipfile raises for damaged archives: a place before the file's start is an OSError."""


class Zip:
    def __init__(self, spec: SourceSpec) -> None:
        self.uri = spec.uri
        handle = open_local(spec.uri)
        try:
            self.archive = zipfile.ZipFile(handle)
        except DAMAGED as error:
            reason = shortened_error(error)
            raise InputError(f"{spec.uri}: not a readable zip: {reason}{lfs_hint(spec.uri)}") from error
        self.size = handle.seek(0, os.SEEK_END)
        self.members = {info.filename: info for info in self.archive.infolist() if not info.is_dir()}
        check_names([info.filename for info in self.archive.infolist()], spec.uri)
        listing = list_pictures(self.members, spec, self._read, unwrap=True)
        self.names, self.labels, self.class_names = listing.names, listing.labels, listing.class_names
        self.notes = listing.notes
        # Size and CRC of every member: the content itself, without reading it.
        contents = [(name, self.members[name].file_size, self.members[name].CRC) for name in self.names]
        self.fingerprint = fingerprint("zip", contents, listing.table)

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> Record:
        return Record(readable(self.names[index]), int(self.labels[index]), self._read(self.names[index]))

    def _read(self, name: str) -> bytes:
        info = self.members[name]
        if info.file_size > MAX_MEMBER_BYTES:
            raise RecordError(f"{readable(name)}: {info.file_size:,} bytes, at most {MAX_MEMBER_BYTES:,} are read")
        try:
            if info.compress_size > self.size:
                raise EOFError(f"said to take {info.compress_size:,} bytes, the zip has {self.size:,}")
            with self.archive.open(info) as member:
                # Of as many bytes as are told: without a number, up to 1 GiB is unpacked before the rest is cut off.
                content = member.read(info.file_size)
            if len(content) < info.file_size:
                raise EOFError(f"{len(content):,} bytes unpacked, {info.file_size:,} were said")
            return content
        except DAMAGED as error:
            raise RecordError(
                f"{readable(name)}: damaged or not readable in the zip: {shortened_error(error)}"
            ) from error
