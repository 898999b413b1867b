"""Average the parameters of a finished run over another width.

The run must have kept power-function averages: train with --set ema.sigma_rels='[0.05, 0.10]'."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.models import open_model, save_model
from edm_ray.storage import uris
from edm_ray.training.posthoc import synthesise
from edm_ray.training.run import model_uri


@dataclass(frozen=True)
class Args(Reports):
    run: Annotated[str, tyro.conf.Positional]
    """Directory or s3:// URI of a finished run."""
    out: Annotated[str, tyro.conf.Positional]
    """Model directory to write."""
    sigma_rel: float
    """Width of the average relative to the training time (Karras et al. 2024), between the widths that the run kept."""
    nimg: int | None = None
    """Average at this many training images; default: the last snapshot."""


def run(args: Args) -> None:
    run_uri = uris.absolute(args.run)
    model = open_model(model_uri(run_uri))
    state, at = synthesise(run_uri, args.sigma_rel, args.nimg)
    # What was measured was measured of another average.
    kept = {name: value for name, value in json.loads(json.dumps(model.about)).items() if name != "metrics"}
    about = {**kept, "images_seen": at, "ema_sigma_rel": args.sigma_rel}
    save_model(uris.absolute(args.out), model.config, state, about, model.codec)
    report({"model": args.out, "images_seen": at, "sigma_rel": args.sigma_rel})
    say(f"{args.out}: parameters at {at:,} images, averaged with sigma_rel {args.sigma_rel:g}")
