"""What a data set says of itself: rows, shards, shape, classes, and the pixel statistics behind sigma_data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edm_ray.config.load import validate
from edm_ray.config.presets import DataShape
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST, manifest_hash, read_manifest

KIND = "edm_ray data set"


@dataclass(frozen=True, kw_only=True)
class Shard:
    name: str
    first_row: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A committed data set: where it is, what is in it."""

    uri: str
    name: str
    rows: int
    resolution: int
    channels: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, in [-1, 1]."""
    std: tuple[float, ...]
    """Per channel, in [-1, 1]: what sigma_data should be near."""
    shards: tuple[Shard, ...]
    hash: str
    """sha256 of the manifest: the identity of the content, wherever it lies."""
    files: dict[str, dict[str, Any]]

    @property
    def shape(self) -> DataShape:
        return DataShape(resolution=self.resolution, channels=self.channels, num_classes=len(self.class_names))


def open_dataset(uri: str) -> DataSet:
    """Read a data set's manifest. Raises InputError when there is none, or it is of something else."""
    manifest = read_manifest(uri)
    if manifest is None:
        found = uris.list_names(uri)
        hint = f"found {', '.join(found[:4])} there, but no {MANIFEST}" if found else "nothing is there"
        if found and any(uris.exists(uris.join(uri, name, MANIFEST)) for name in found):
            nested = [name for name in found if uris.exists(uris.join(uri, name, MANIFEST))]
            hint = f"it holds several: give one of {', '.join(uris.join(uri, name) for name in nested)}"
        raise InputError(f"{uri}: no data set ({hint}); make one with: edm-ray prepare SOURCE {uri}")
    if manifest.get("kind") != KIND:
        raise InputError(f"{uri}: holds {manifest.get('kind', 'something else')!r}, not a data set")
    fields = {field.name for field in dataclasses.fields(DataSet)}
    known = {key: value for key, value in manifest.items() if key in fields}
    return validate(DataSet, {**known, "uri": uri, "hash": manifest_hash(manifest)}, uris.join(uri, MANIFEST))
