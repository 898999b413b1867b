"""Make the reference of a data set: exact feature moments, features of some images, and which extractor they are of.

The extractor's weights are copied beside them, so that the reference directory alone is enough to evaluate."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from edm_ray.cli.console import Progress, say
from edm_ray.cli.workers import choose_executor
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.parts import FOLDER, ReferenceParts, ranges_of, require_pictures
from edm_ray.evaluation.reference import ExtractorSpec, commit_reference, open_reference, reference_key
from edm_ray.evaluation.reference_features import DEFAULT_FEATURES, chosen_rows
from edm_ray.execution.executor import make_all
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest


@dataclass(frozen=True)
class Args:
    data: str
    """Data set: a directory or s3:// URI."""
    out: str | None = None
    """Directory or s3:// URI of the reference. Or give --store."""
    store: str | None = None
    """Directory or s3:// URI of many references: this one lies there under the hash of data set and extractor, and is
    found, not made, when anybody made it before."""
    extractor: str = "inception"
    """inception (the standard), clip or dinov2 (all need --weights), or digits (trained here in seconds on 8x8 images
    with classes)."""
    weights: str | None = None
    """Extractor weights: a path or s3:// URI."""
    sha256: str | None = None
    """What the weights' sha256 must be."""
    features: int = DEFAULT_FEATURES
    """Features of so many images are kept for KID, precision and recall (4 bytes times their length each); 0: none."""
    workers: str = "0"
    """Ray actors that share the data set, one CPU or GPU each; 0: in this process, without Ray. The result has the same
    bits."""
    device: str = "cpu"
    """Where the extractor runs: cpu or cuda."""
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    if (args.out is None) == (args.store is None):
        raise InputError("give --out DIRECTORY for this reference, or --store DIRECTORY that holds many")
    if args.features < 0:
        raise InputError(f"--features {args.features}: give 0 or more")
    executor = choose_executor(args.workers, args.device)
    data = uris.absolute(args.data)
    dataset = open_dataset(data)
    require_pictures(dataset)
    if args.out is not None and _is_there(uris.absolute(args.out), dataset, args.extractor):
        return
    if args.dry_run:
        if args.weights is not None and not uris.exists(args.weights):
            raise InputError(f"--weights {args.weights}: no such file")
        who = f"{args.workers} x {args.device}" if args.workers != "0" else "this process"
        say(f"would measure {dataset.rows:,} images of {dataset.name} with extractor {args.extractor}")
        say(f"  in {who}, into {args.out or args.store}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = weights_file(args, dataset, Path(folder))
        # With Ray it is loaded here only to be checked and named, which needs no GPU.
        extractor = load_extractor(args.extractor, path, args.sha256, "cpu" if args.workers != "0" else args.device)
        assert path is not None
        weights = path.read_bytes()
    if args.store is not None:
        key = reference_key(dataset, extractor)
        out = uris.join(uris.absolute(args.store), f"{dataset.name}-{args.extractor}-{key[:16]}")
        if _is_there(out, dataset, args.extractor):
            return
    else:
        assert args.out is not None
        out = uris.absolute(args.out)
    recipe = ReferenceParts(
        dataset=dataset,
        extractor=ExtractorSpec(name=extractor.name, weights=weights, sha256=extractor.weights_sha256),
        chosen=chosen_rows(dataset.rows, args.features),
        store=uris.join(out, FOLDER),
    )
    parts = recipe.parts(ranges_of(dataset.rows), extractor.identity, args.device)
    progress = Progress("parts of the reference")
    with executor.open(recipe) as (measuring,):
        make_all(measuring, [(part,) for part in parts], progress.update)
    moments, kept = recipe.collect(parts, extractor.scale_bits)
    commit_reference(out, moments, dataset, extractor, weights, kept)
    uris.delete_directory(recipe.store)
    say(f"{out}: {moments.n:,} images of {dataset.name}, extractor {args.extractor}, {extractor.dim} features")
    if kept is not None:
        say(f"  the features of {len(kept.rows):,} images are kept for KID, precision and recall")


def _is_there(out: str, dataset: DataSet, extractor: str) -> bool:
    """Whether this reference is there already, said. Raises InputError when another one is."""
    manifest = read_manifest(out)
    if manifest is None:
        return False
    reference, _ = open_reference(out)
    if (reference.dataset_hash, reference.extractor_name) != (dataset.hash, extractor):
        raise InputError(
            f"{out}: holds the reference of {reference.dataset} with extractor {reference.extractor_name}; "
            "choose another --out"
        )
    say(f"{out}: the reference is there already, with the features of {manifest.get('features', 0):,} images")
    return True


def weights_file(args: Args, dataset: DataSet, folder: Path) -> Path | None:
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
    from edm_ray.evaluation.extractors.digits import save_digits_classifier, train_digits_classifier

    say("  training the digits extractor (a small classifier, fixed seed)")
    with open_reader(dataset) as pixels:
        state = train_digits_classifier(torch.from_numpy(pixels.images), torch.from_numpy(pixels.labels))
    local = folder / "digits.safetensors"
    save_digits_classifier(state, local)
    return local
