"""Turn a network file of the official EDM code into a model directory, or into a diffusers-style folder.

Executes nothing in the file. The official weights are licensed under CC BY-NC-SA 4.0. An FID reference (.npz with mu
and sigma) becomes a reference directory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.cli.weights_progress import WeightsProgress
from edm_ray.errors import InputError
from edm_ray.models import save_model
from edm_ray.models.interop.diffusers import save_diffusers
from edm_ray.models.interop.nvlabs import Imported, import_pickle
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest

FORMATS = ("model", "diffusers")


@dataclass(frozen=True)
class Args(Reports):
    source: Annotated[str, tyro.conf.Positional]
    """A .pkl snapshot, .pt training state or .npz FID reference: a path, s3:// or https://."""
    out: Annotated[str, tyro.conf.Positional]
    """Output directory, local or s3://."""
    key: str = "ema"
    """Which network in the file: ema, or net (training states)."""
    sha256: str | None = None
    """Expected sha256 of the file."""
    format: str = "model"
    """model (what every command here takes) or diffusers (for use without this package)."""
    extractor: str = "inception"
    """FID references: the extractor they were made with."""
    weights: str | None = None
    """FID references: the extractor's weights, a path or s3:// URI; without it they are found as for `reference`."""


def run(args: Args) -> None:
    if args.format not in FORMATS:
        raise InputError(f"--format {args.format}: give {' or '.join(FORMATS)}")
    out = uris.absolute(args.out)
    check_free(out)
    if args.source.partition("?")[0].endswith(".npz"):
        import_reference(args, out)
        return
    if args.weights is not None:
        raise InputError("--weights belongs to FID references (.npz); leave it out")
    imported = read_source(args)
    if args.format == "model":
        save_model(out, imported.config, imported.state, imported.facts)
    else:
        save_diffusers(out, imported.config, imported.state, imported.facts)
    network, count = imported.config.network, sum(tensor.numel() for tensor in imported.state.values())
    say(
        f"{imported.facts.get('class_name', 'model')}: {network.kind}, {network.img_channels}x{network.img_resolution}"
        f"x{network.img_resolution}, {len(imported.state)} tensors, {count:,} numbers; nothing was executed"
    )
    if "class_name" in imported.facts:
        say("  official weights are under CC BY-NC-SA 4.0 (non-commercial, share alike)")
    report({"out": out, "format": args.format, **imported.facts})
    say(f"  {args.format}: {out}")
    if args.format == "model":
        say(f"  next: edm-ray generate --model {out} --out samples.png")


def check_free(out: str) -> None:
    """Nothing is overwritten, and a half-written import is written again."""
    if read_manifest(out) is not None:
        raise InputError(f"{out}: holds something already; choose another OUT")
    known = {"config.json", "model.safetensors", "README.md", "unet", "moments.safetensors", "extractor-weights"}
    if found := [name for name in uris.list_names(out) if name not in known]:
        raise InputError(f"{out}: is not empty (found {', '.join(found[:4])}); choose another OUT")


def import_reference(args: Args, out: str) -> None:
    """A published mean and covariance -> a reference directory with the extractor's weights."""
    from edm_ray.evaluation.extractors.published_weights import weights_file
    from edm_ray.evaluation.extractors.registry import load_extractor
    from edm_ray.evaluation.reference import commit_published
    from edm_ray.models.interop.fid_reference import MAX_BYTES, read_fid_npz
    from edm_ray.models.interop.source import fetch

    file = fetch(args.source, args.sha256, MAX_BYTES)
    mean, covariance = read_fid_npz(file.content, file.name)
    with tempfile.TemporaryDirectory() as folder:
        path = weights_file(args.extractor, args.weights, Path(folder), WeightsProgress().download)
        extractor = load_extractor(args.extractor, path)  # says which weights are needed, where there are none
        assert path is not None
        commit_published(
            out, mean, covariance, file.name.removesuffix(".npz"), file.sha256, extractor, path.read_bytes()
        )
    report({"reference": out, "features": len(mean), "extractor": args.extractor})
    say(f"{out}: {len(mean)} features of {file.name}, extractor {args.extractor}")
    say("  FIDs against it are as good as the agreement of this extractor with the one that made the file")


def read_source(args: Args) -> Imported:
    """A foreign file. Raises InputError for what is no foreign file."""
    remote_file = "://" in args.source and not args.source.startswith(("s3://", "file://"))
    manifest = None if remote_file else read_manifest(args.source)
    if manifest is not None:
        raise InputError(
            f"{args.source}: is {manifest.get('kind')!r} already; `edm-ray export` turns a model into other formats"
        )
    return import_pickle(args.source, args.key, args.sha256)
