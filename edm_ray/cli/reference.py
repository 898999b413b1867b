"""Make the reference of a data set: exact feature moments, features of some images, and which extractor they are of.

The extractor's weights are copied beside them, so that the reference directory alone is enough to evaluate."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edm_ray.cli.console import Progress, say
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import Reader, open_reader
from edm_ray.errors import InputError
from edm_ray.evaluation.extractor import Extractor
from edm_ray.evaluation.features import load_extractor
from edm_ray.evaluation.kept import DEFAULT_KEPT, KeptFeatures, chosen_rows
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import commit_reference, open_reference
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest


@dataclass(frozen=True)
class Args:
    data: str
    """Data set: a directory or s3:// URI."""
    out: str
    """Directory or s3:// URI of the reference."""
    extractor: str = "inception"
    """inception (the standard), clip or dinov2 (all need --weights), or digits (trained here in seconds on 8x8 images
    with classes)."""
    weights: str | None = None
    """Extractor weights: a path or s3:// URI."""
    sha256: str | None = None
    """What the weights' sha256 must be."""
    features: int = DEFAULT_KEPT
    """Features of so many images are kept for KID, precision and recall (4 bytes times their length each); 0: none."""
    device: str = "cpu"
    """Where the extractor runs: cpu or cuda."""
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    if args.features < 0:
        raise InputError(f"--features {args.features}: give 0 or more")
    if read_manifest(args.out) is not None:
        reference, _ = open_reference(args.out)
        dataset = open_dataset(args.data)
        if (reference.dataset_hash, reference.extractor_name) != (dataset.hash, args.extractor):
            raise InputError(
                f"{args.out}: holds the reference of {reference.dataset} with extractor {reference.extractor_name}; "
                "choose another --out"
            )
        kept = (read_manifest(args.out) or {}).get("features", 0)
        say(f"{args.out}: the reference is there already, with the features of {kept:,} images")
        return
    dataset = open_dataset(args.data)
    if args.dry_run:
        if args.weights is not None and not uris.exists(args.weights):
            raise InputError(f"--weights {args.weights}: no such file")
        say(f"would measure {dataset.rows:,} images of {dataset.name} with extractor {args.extractor} into {args.out}")
        return
    pixels = open_reader(dataset)
    with tempfile.TemporaryDirectory() as folder:
        path = weights_file(args, pixels, Path(folder))
        extractor = load_extractor(args.extractor, path, args.sha256, args.device)
        assert path is not None
        moments, kept = measure(extractor, pixels.images, args.features)
        commit_reference(args.out, moments, dataset, extractor, path.read_bytes(), kept)
    say(f"{args.out}: {moments.n:,} images of {dataset.name}, extractor {args.extractor}, {extractor.dim} features")
    if kept is not None:
        say(f"  the features of {len(kept.rows):,} images are kept for KID, precision and recall")


def weights_file(args: Args, pixels: Reader, folder: Path) -> Path | None:
    """A local file with the extractor's weights; the digits extractor is trained when none are given."""
    if args.weights is not None:
        if not uris.is_remote(args.weights):
            if not Path(args.weights).is_file():
                raise InputError(f"--weights {args.weights}: no such file")
            return Path(args.weights)
        local = folder / "weights"
        local.write_bytes(uris.read_bytes(args.weights))
        return local
    if args.extractor != "digits":
        return None
    from edm_ray.evaluation.digits_classifier import save_digits_classifier, train_digits_classifier

    say("  training the digits extractor (a small classifier, fixed seed)")
    state = train_digits_classifier(torch.from_numpy(pixels.images), torch.from_numpy(pixels.labels))
    local = folder / "digits.safetensors"
    save_digits_classifier(state, local)
    return local


def measure(extractor: Extractor, images: np.ndarray, keep: int) -> tuple[Moments, KeptFeatures | None]:
    """Exact moments of all images, a block at a time, and the features of ``keep`` of them."""
    progress, parts, features = Progress("reference images"), [], []
    rows = chosen_rows(len(images), keep)
    for first in range(0, len(images), 500):
        block = extractor.extract(torch.from_numpy(images[first : first + 500]))
        parts.append(Moments.of(block, extractor.identity, extractor.scale_bits))
        features.append(block[rows[(rows >= first) & (rows < first + 500)] - first])
        progress.update(min(first + 500, len(images)), len(images))
    kept = KeptFeatures(features=np.concatenate(features), rows=rows) if keep else None
    return Moments.merge(*parts), kept
