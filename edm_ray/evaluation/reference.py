"""A reference in one directory: exact feature moments of a data set, the extractor they are of, and its weights."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edm_ray.data.manifest import KIND as DATASET
from edm_ray.data.manifest import DataSet
from edm_ray.errors import InputError, IntegrityError, shortened
from edm_ray.evaluation.extractors import pixels, self_trained
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.extractors.registry import load_extractor, misfit
from edm_ray.evaluation.moments import Array, Moments
from edm_ray.evaluation.published import PublishedMoments
from edm_ray.evaluation.reference_features import FEATURES_FILE, ReferenceFeatures
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST, commit, manifest_kind, nested, open_manifest, read_file, sha256

KIND = "edm_ray reference"
_KEYS = ("features", "dataset", "dataset_hash", "n", "extractor", "weights_sha256", "published")
_MOMENTS, _WEIGHTS = "moments.safetensors", "extractor-weights"
FILES = (_MOMENTS, _WEIGHTS, FEATURES_FILE)
"""What a reference may hold beside its manifest."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """What FIDs are measured against."""

    moments: Moments | PublishedMoments
    dataset: str
    dataset_hash: str
    extractor_name: str
    weights_sha256: str

    @property
    def images(self) -> int | None:
        """Number of images behind the moments; None where nobody published it."""
        return self.moments.n if isinstance(self.moments, Moments) else None

    def describe(self) -> str:
        images = f"n={self.moments.n}" if isinstance(self.moments, Moments) else self.moments.images
        # Whoever reads the FID reads this too.
        own = f" {self.weights_sha256[:8]} (comparable within one data set only)" if self.is_self_trained else ""
        return f"{self.dataset} ({images}), extractor {self.extractor_name}{own}"

    @property
    def is_self_trained(self) -> bool:
        return self.extractor_name == self_trained.NAME


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """How to load the extractor on any node: its registered name, and its weights as bytes of a known hash."""

    name: str
    weights: bytes
    """Or a NumPy array of the bytes, as Ray's object store holds them."""
    sha256: str

    def load(self, device: str = "cpu") -> Extractor:
        """By way of a private temporary file, because extractors read files."""
        if self.name == pixels.NAME:
            return cast(Extractor, pixels.Pixels())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights"
            path.write_bytes(self.weights)
            return load_extractor(self.name, path, self.sha256, device)

    def misfit(self, channels: int, resolution: int) -> str | None:
        """What it takes, in words, where it does not take images of this size; else None."""
        if self.name == self_trained.NAME:
            return self_trained.self_misfit(bytes(self.weights), "extractor-weights", channels, resolution)
        return misfit(self.name, channels, resolution)


PIXELS = ExtractorSpec(name=pixels.NAME, weights=b"", sha256="")
"""Keeps pictures as they are."""


def reference_key(dataset: DataSet, extractor: Extractor) -> str:
    """Content address of a reference: the data set's hash and the extractor's identity."""
    return sha256(f"{dataset.hash} {extractor.identity}".encode())


def commit_reference(
    uri: str,
    moments: Moments,
    dataset: DataSet,
    extractor: Extractor,
    weights: bytes,
    rows: ReferenceFeatures | None = None,
) -> None:
    """Write a reference directory; the weights go with it, so that it is enough to evaluate on any node."""
    features = [(FEATURES_FILE, rows.to_bytes())] if rows is not None else []
    commit(
        uri,
        [(_MOMENTS, moments.to_bytes()), (_WEIGHTS, weights), *features],
        features=0 if rows is None else len(rows.rows),
        kind=KIND,
        dataset=dataset.name,
        dataset_hash=dataset.hash,
        n=moments.n,
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
    )


def commit_published(
    uri: str, mean: Array, covariance: Array, name: str, file_sha256: str, extractor: Extractor, weights: bytes
) -> None:
    """Write a reference directory from a published mean [d] and covariance [d, d], said to be of this extractor."""
    if len(mean) != extractor.dim:
        raise InputError(f"{name}: {len(mean)} features, extractor {extractor.name} has {extractor.dim}")
    moments = PublishedMoments(
        mean=mean, covariance=covariance, extractor=extractor.identity, scale_bits=extractor.scale_bits
    )
    commit(
        uri,
        [(_MOMENTS, moments.to_bytes()), (_WEIGHTS, weights)],
        kind=KIND,
        dataset=name,
        dataset_hash=file_sha256,
        n=None,
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        published={"extractor": moments.extractor, "scale_bits": moments.scale_bits},
    )


def open_reference(uri: str) -> tuple[Reference, ExtractorSpec]:
    """Read and check a reference directory. Raises InputError when there is none or its parts do not match."""
    if manifest_kind(uri) == DATASET:
        raise InputError(
            f"{uri}: is a data set, not a reference; make one of it: edm-ray reference --data {shlex.quote(uri)} --out "
            "REFERENCE, and give that"
        )
    manifest = open_manifest(uri, KIND, _KEYS, FILES)
    if manifest is None:
        if uri.lower().endswith((".npz", ".pkl")):
            raise InputError(
                f"{uri}: a published mean and covariance is made a reference by: edm-ray import {uri} OUT "
                "--extractor inception --weights WEIGHTS; give --reference OUT"
            )
        if inside := nested(uri, KIND):
            raise InputError(f"{uri}: no reference itself; it holds {', '.join(inside)}: give one")
        if found := uris.list_names(uri):
            raise InputError(
                f"{uri}: no reference (found {', '.join(found[:4])} there); make one of a data set that `edm-ray "
                "prepare` wrote: edm-ray reference --data DATASET --out REFERENCE"
            )
        raise InputError(f"{uri}: no reference there; make one with: edm-ray reference --data DATASET --out {uri}")
    for name in ("dataset", "dataset_hash", "extractor", "weights_sha256"):
        if not isinstance(manifest.get(name), str):
            got = shortened(manifest.get(name))
            raise IntegrityError(f"{uris.join(uri, MANIFEST)}: {name}={got} is not allowed: a text")
    content, where = read_file(uri, _MOMENTS, manifest), uris.join(uri, _MOMENTS)
    moments: Moments | PublishedMoments
    if published := manifest.get("published"):
        if not isinstance(published, dict) or set(published) != {"extractor", "scale_bits"}:
            raise IntegrityError(f"{uris.join(uri, MANIFEST)}: published={shortened(published)} is not allowed")
        moments = PublishedMoments.from_bytes(content, where, published["extractor"], published["scale_bits"])
    else:
        moments = Moments.from_bytes(content, where)
    reference = Reference(
        moments=moments,
        dataset=manifest["dataset"],
        dataset_hash=manifest["dataset_hash"],
        extractor_name=manifest["extractor"],
        weights_sha256=manifest["weights_sha256"],
    )
    if isinstance(moments, Moments) and moments.n < 2:
        raise InputError(f"{uri}: a reference of {moments.n} image; 2 or more are needed (their covariance)")
    weights = read_file(uri, _WEIGHTS, manifest)
    spec = ExtractorSpec(name=reference.extractor_name, weights=weights, sha256=reference.weights_sha256)
    if spec.load().identity != moments.extractor:
        raise InputError(
            f"{uri}: its moments were made by another version of extractor {spec.name}; make the reference again"
        )
    return reference, spec
