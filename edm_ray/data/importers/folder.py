"""A folder of pictures, local or on S3: class by first-level subfolder, or ``dataset.json``."""

from __future__ import annotations

from edm_ray.data.importers.files import empty_folders, list_tree, readable
from edm_ray.data.importers.listing import list_pictures
from edm_ray.data.importers.source import Record, RecordError, SourceSpec, fingerprint
from edm_ray.errors import counted
from edm_ray.storage import uris

READ_AHEAD = 16
"""Requests under way at a time when the folder is on S3."""


class Folder:
    def __init__(self, spec: SourceSpec) -> None:
        self.uri = spec.uri
        self.concurrent = READ_AHEAD if uris.is_remote(spec.uri) else 1
        sizes = list_tree(spec.uri)
        listing = list_pictures(sizes, spec, lambda name: uris.read_bytes(uris.join(spec.uri, name)))
        self.names, self.labels, self.class_names = listing.names, listing.labels, listing.class_names
        self.notes = listing.notes
        if empty := empty_folders(spec.uri):
            self.notes += (f"ignored {counted(len(empty), 'empty folder')} (the first: {readable(empty[0])})",)
        self.fingerprint = fingerprint("folder", [(name, sizes[name]) for name in self.names], listing.table)

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> Record:
        name = self.names[index]
        try:
            content = uris.read_bytes(uris.join(self.uri, name))
        except PermissionError as error:
            raise RecordError(f"{readable(name)}: may not be read: {error.strerror}") from error
        return Record(readable(name), int(self.labels[index]), content)
