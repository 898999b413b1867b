"""The features that a reference keeps beside its moments: KID, precision and recall need rows, not sums.

Of a large data set a stated number is kept. Which: the rows with the smallest keyed random words, so the choice is a
function of the row number alone, and a smaller choice is part of every larger one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch

from edm_ray.errors import InputError, IntegrityError
from edm_ray.seeding import stream_key, words
from edm_ray.storage import uris
from edm_ray.storage.commit import read_file, read_manifest

FEATURES_FILE = "features.safetensors"
DEFAULT_FEATURES = 10_000


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceFeatures:
    features: npt.NDArray[np.int32]
    """[m, d] on the extractor's grid."""
    rows: npt.NDArray[np.int64]
    """[m], ascending: which images of the data set they are of."""

    def to_bytes(self) -> bytes:
        content: bytes = safetensors.numpy.save({"features": self.features, "rows": self.rows})
        return content

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> ReferenceFeatures:
        try:
            arrays = safetensors.numpy.load(content)
            features, rows = arrays["features"], arrays["rows"]
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise IntegrityError(f"{where}: not a file of features: {error}") from error
        if features.dtype != np.int32 or features.ndim != 2 or rows.shape != (len(features),):
            raise IntegrityError(
                f"{where}: features {features.dtype} {features.shape} and rows {rows.shape} do not fit"
            )
        return cls(features=features, rows=rows)


def chosen_rows(total: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` of ``total`` rows (all, when there are no more), ascending int64."""
    if count >= total:
        return np.arange(total, dtype=np.int64)
    key = stream_key("reference features")
    draws = np.empty(total, np.int64)
    for first in range(0, total, 1 << 20):
        part = torch.arange(first, min(first + (1 << 20), total), dtype=torch.int64)
        # 62 bits: two rows share a word about never, and then the lower row goes first.
        pair = words(key, part, 2).numpy()
        draws[first : first + len(part)] = (pair[:, 0] >> 1 << 31) | (pair[:, 1] >> 1)
    return np.sort(np.argsort(draws, kind="stable")[:count])


def open_reference_features(uri: str, metric: str) -> ReferenceFeatures:
    """The features kept by the reference directory at ``uri``, checked. ``metric`` is named when there are none."""
    manifest: dict[str, Any] = read_manifest(uri) or {"files": {}}
    if FEATURES_FILE not in manifest["files"]:
        why = (
            "it was published as a mean and a covariance"
            if manifest.get("published")
            else "make it again, elsewhere, with: edm-ray reference --features 10000"
        )
        raise InputError(
            f"--metrics {metric}: needs features of real images, and the reference {uri} keeps none: {why}; "
            "fid and isc need none"
        )
    return ReferenceFeatures.from_bytes(read_file(uri, FEATURES_FILE, manifest), uris.join(uri, FEATURES_FILE))
