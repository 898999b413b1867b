"""A reference is measured in parts: ranges of a data set's rows, each read, put through the extractor and kept apart.

Parts are cut by the number of rows alone and moments are exact sums, so a reference has the same bits whoever measures
which part, and in what order. Finished parts lie in OUT/parts until the reference is committed: a command that was
killed goes on from there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy
import torch

from edm_ray.data.format import Pixels
from edm_ray.data.manifest import DataSet
from edm_ray.data.verify import read_verified
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference_features import KeptFeatures
from edm_ray.storage import uris
from edm_ray.storage.commit import canonical_json, sha256

LEAST_ROWS = 500
MOST_PARTS = 64
"""A part with 2,048 features is 34 MB, so all of them together stay near 2 GB however large the data set."""
FOLDER = "parts"


@dataclass(frozen=True)
class Part:
    """Rows [first, stop) of a data set."""

    first: int
    stop: int


def parts_of(rows: int) -> list[Part]:
    size = max(LEAST_ROWS, -(-rows // MOST_PARTS))
    return [Part(first, min(first + size, rows)) for first in range(0, rows, size)]


def require_pictures(dataset: DataSet) -> None:
    if not dataset.codec.is_pixels:
        raise InputError(
            f"{dataset.uri}: holds latents, a reference is of pictures: prepare the pictures themselves and give those"
        )


class PartMeter:
    """Measures parts of one data set with one extractor; the shard read last is kept for the next part."""

    def __init__(self, dataset: DataSet, extractor: Extractor, chosen: np.ndarray, store: str, device: str) -> None:
        """chosen: int64 rows, ascending, whose features are kept. device: where the parts are measured."""
        self.dataset, self.extractor, self.chosen = dataset, extractor, chosen
        self.store, self.device = store, device
        self._shard: tuple[str, Pixels] = ("", np.empty(0, np.uint8))

    def finish(self, part: Part) -> None:
        """The part is in the store: measured, unless a sound one is there."""
        path, identity = self._path(part), self._identity(part)
        if uris.exists(path):
            try:
                read_part(path, identity)
                return
            except IntegrityError:
                pass  # half-written or of another reference: written over
        features = self.extractor.extract(torch.from_numpy(self._pictures(part)))
        moments = Moments.of(features, self.extractor.identity, self.extractor.scale_bits)
        rows = self._rows(part)
        tensors = {"total": moments.total, "outer": moments.outer, "features": features[rows - part.first]}
        digest = sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors)))
        metadata = {"identity": identity, "sha256": digest}
        uris.write_bytes(path, safetensors.numpy.save(tensors, metadata=metadata))

    def collect(self, parts: list[Part]) -> tuple[Moments, KeptFeatures | None]:
        """Finished parts together, one in memory at a time."""
        merged: Moments | None = None
        kept = []
        for part in parts:
            tensors = read_part(self._path(part), self._identity(part))
            moments = Moments(
                n=part.stop - part.first,
                total=tensors["total"],
                outer=tensors["outer"],
                scale_bits=self.extractor.scale_bits,
                extractor=self.extractor.identity,
            )
            merged = moments if merged is None else Moments.merge(merged, moments)
            kept.append(tensors["features"])
        assert merged is not None, "a data set has one row or more"
        chosen = KeptFeatures(features=np.concatenate(kept), rows=self.chosen) if len(self.chosen) else None
        return merged, chosen

    def _rows(self, part: Part) -> np.ndarray:
        return self.chosen[(self.chosen >= part.first) & (self.chosen < part.stop)]

    def _path(self, part: Part) -> str:
        return uris.join(self.store, f"{sha256(self._identity(part).encode())[:32]}.safetensors")

    def _identity(self, part: Part) -> str:
        kept = sha256(self._rows(part).tobytes())
        facts = {"dataset": self.dataset.hash, "extractor": self.extractor.identity, "device": self.device}
        return canonical_json({**facts, "rows": [part.first, part.stop], "kept": kept, "torch": torch.__version__})

    def _pictures(self, part: Part) -> Pixels:
        pieces = []
        for shard in self.dataset.shards:
            first, stop = max(part.first, shard.first_row), min(part.stop, shard.first_row + shard.rows)
            if first < stop:
                if self._shard[0] != shard.name:
                    self._shard = (shard.name, read_verified(self.dataset, shard)[0])
                pieces.append(self._shard[1][first - shard.first_row : stop - shard.first_row])
        return np.concatenate(pieces)


def read_part(path: str, identity: str) -> dict[str, np.ndarray]:
    """Arrays of a finished part. Raises IntegrityError when the file is damaged or of something else."""
    content = uris.read_bytes(path)
    try:
        tensors: dict[str, np.ndarray] = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        found = (header["identity"], header["sha256"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: not a whole part of a reference ({error}); delete it and run again") from error
    if found != (identity, sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors)))):
        raise IntegrityError(f"{path}: a part of another reference, or damaged; delete it and run again")
    return tensors
