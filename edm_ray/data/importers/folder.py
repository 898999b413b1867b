"""A folder of pictures, local or on S3: class by first-level subfolder, or ``dataset.json``."""

from __future__ import annotations

from edm_ray.data.importers.files import list_tree
from edm_ray.data.importers.listing import DATASET_JSON, list_pictures
from edm_ray.data.importers.source import Record, SourceSpec, fingerprint
from edm_ray.storage import uris

READ_AHEAD = 16
"""Requests under way at a time when the folder is on S3."""


class Folder:
    def __init__(self, spec: SourceSpec) -> None:
        self.uri = spec.uri
        self.concurrent = READ_AHEAD if uris.is_remote(spec.uri) else 1
        sizes = list_tree(spec.uri)
        table = uris.read_bytes(uris.join(spec.uri, DATASET_JSON)) if DATASET_JSON in sizes else None
        listing = list_pictures(sizes, spec.uri, table, unlabelled=spec.unlabelled)
        self.names, self.labels, self.class_names = listing.names, listing.labels, listing.class_names
        self.notes = listing.notes
        self.fingerprint = fingerprint("folder", [(name, sizes[name]) for name in self.names], table)

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> Record:
        name = self.names[index]
        return Record(name, int(self.labels[index]), uris.read_bytes(uris.join(self.uri, name)))
