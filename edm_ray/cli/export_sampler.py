"""Write a sampler as another tool takes it: its list of noise levels, its solver and settings.

What the tool would sample otherwise is refused, with the reason; `--to json` has the plain numbers of any sampler."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from edm_ray.cli.console import say
from edm_ray.cli.sampler import choose_settings
from edm_ray.config.preconditioning import EDMPreconditioning
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.models.interop.sampler_export import SIGMA_DATA, export_sampler
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    sampler: Annotated[str, tyro.conf.Positional]
    """best-sampler.yaml of a sweep, or a directory that holds one."""
    to: Literal["diffusers", "comfyui", "json"] = "json"
    """diffusers: scheduler configuration and noise levels; comfyui: SIGMAS, sampler name and options."""
    out: str | None = None
    """A .json file; without it the text goes to the terminal."""
    set: list[str] = field(default_factory=list)
    """Sampler settings laid over the file's, e.g. --set num_steps=10"""
    model: str | None = None
    """Model directory: the noise levels are within what it knows, and sigma_data is its own."""


def run(args: Args) -> None:
    sampler = choose_settings(args.sampler, args.set)
    denoiser, sigma_data = None, SIGMA_DATA
    if args.model is not None:
        model = open_model(uris.absolute(args.model))
        preconditioning, denoiser = model.config.preconditioning, model.denoiser()
        if isinstance(preconditioning, EDMPreconditioning):
            sigma_data = preconditioning.sigma_data
        elif args.to == "diffusers":
            raise InputError(
                f"--model {args.model}: its preconditioning is {preconditioning.kind!r}; diffusers' schedulers in this "
                "form are of edm; use --to json"
            )
    text = json.dumps(export_sampler(sampler, args.to, denoiser, sigma_data), indent=1, allow_nan=False) + "\n"
    if args.out is None:
        sys.stdout.write(text)
        return
    uris.write_bytes(args.out, text.encode())
    say(f"{args.out}: {sampler} for {args.to}")
