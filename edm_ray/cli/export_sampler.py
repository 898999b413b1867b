"""Write a sampler in another tool's form: its noise levels, solver and settings.

Refuses a sampler that the tool would compute differently, with the reason; `--to json` writes the plain numbers of any
sampler."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from edm_ray.cli.console import as_json, say, write_out
from edm_ray.cli.sampler import choose_settings
from edm_ray.config.preconditioning import EDMPreconditioning
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.models.interop.sampler_export import SIGMA_DATA, export_sampler
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    sampler: Annotated[str, tyro.conf.Positional]
    """The result of a sweep: best-sampler.yaml, best-samplers.yaml, or the directory that holds one."""
    to: Literal["diffusers", "comfyui", "json"] = "json"
    """diffusers: scheduler configuration and noise levels; comfyui: SIGMAS, sampler name and options."""
    out: str | None = None
    """A .json file; without it the text is printed."""
    nfe: int | None = None
    """Which sampler to take from best-samplers.yaml (`sweep --nfe`): the best with at most this many network
    evaluations."""
    set: list[str] = field(default_factory=list)
    """Settings that override those of the file, e.g. --set num_steps=10"""
    model: str | None = None
    """Model directory: use its range of noise levels and its sigma_data."""


def run(args: Args) -> None:
    with as_json(args.out is None):  # what else is said does not mix with what is printed
        sampler = choose_settings(args.sampler, args.set, args.nfe)
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
    text = json.dumps(export_sampler(sampler, args.to, denoiser, sigma_data), indent=1, allow_nan=False)
    if args.out is None:
        write_out(text)
        return
    uris.write_bytes(args.out, f"{text}\n".encode())
    say(f"{args.out}: {sampler} for {args.to}")
