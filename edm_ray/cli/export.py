"""Make a model directory from an unfinished run, or a diffusers-style folder from a run or model.

The run may still be training: this reads its last checkpoint, or with --nimg an earlier one or a snapshot."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.models.interop.diffusers import save_diffusers
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest
from edm_ray.tasks.export import Exported, export_run, is_run


@dataclass(frozen=True)
class Args(Reports):
    source: Annotated[str, tyro.conf.Positional]
    """A run (the --out of `edm-ray train`), or a model directory."""
    out: Annotated[str | None, tyro.conf.Positional] = None
    """Output directory, local or s3://; default for a run: RUN/model-NIMG."""
    nimg: int | None = None
    """For a run: the checkpoint or snapshot at this many images; default: the last one."""
    format: Literal["model", "diffusers"] = "model"
    """model (what every command here takes) or diffusers (for use without this package)."""


def run(args: Args) -> None:
    source = uris.absolute(args.source)
    out = None if args.out is None else uris.absolute(args.out)
    if args.format == "diffusers":
        if out is None:
            raise InputError("--format diffusers: give the folder to write, after the run or model")
        _diffusers(source, out, args.nimg)
        return
    if not is_run(source) and read_manifest(source) is not None:
        raise InputError(f"{args.source}: is a model already; give a run, or --format diffusers and a folder")
    if out is not None:
        _refuse_taken(out)
    made = export_run(source, out, args.nimg)
    report(vars(made))
    say(f"{made.uri}: the model at {made.images_seen:,} of {made.total:,} images, from a {made.source}")
    say(f"  sample from it: edm-ray generate --model {shlex.quote(made.uri)} --out samples.png")


def _refuse_taken(out: str) -> None:
    if read_manifest(out) is not None or uris.list_names(out):
        raise InputError(f"{out}: holds something already; choose another place")


def _diffusers(source: str, out: str, nimg: int | None) -> None:
    _refuse_taken(out)
    with tempfile.TemporaryDirectory() as folder:
        made: Exported | None = None
        if is_run(source):
            made = export_run(source, str(Path(folder) / "model"), nimg)
        elif nimg is not None:
            raise InputError("--nimg belongs to runs; leave it out")
        model = open_model(source if made is None else made.uri)
        if not model.codec.is_pixels:
            raise InputError(f"{source}: makes latents for the decoder {model.codec.decoder!r}; the format has no such")
        save_diffusers(out, model.config, dict(model.denoiser().module.state_dict()), dict(model.about))
    report({"out": out, "format": "diffusers", "images_seen": model.about.get("images_seen")})
    say(f"diffusers: {out}")
