"""Sampler settings from a best-sampler.yaml and ``--set`` pairs, shared by the commands that sample."""

from __future__ import annotations

from collections.abc import Sequence

from edm_ray.cli.console import say
from edm_ray.config.load import parse_overrides
from edm_ray.config.text import MAX_BYTES
from edm_ray.diffusion.samplers import Euler, Sampler, sampler, with_changes
from edm_ray.errors import InputError
from edm_ray.search.by_budget import BEST_SAMPLERS, sampler_at
from edm_ray.search.sampler_file import BEST_SAMPLER, settings_from_yaml
from edm_ray.storage import uris


def choose_settings(file: str | None, overrides: Sequence[str], nfe: int | None = None) -> Sampler:
    """The file's settings (default: deterministic, 18 steps) with the pairs laid over them.

    file: a path or s3:// URI of a best-sampler.yaml, or of a directory that holds one (a sweep's, a model's).
    nfe: the budget whose row is taken of a best-samplers.yaml.
    """
    base: Sampler = sampler()
    if nfe is not None and nfe < 1:
        raise InputError(f"--nfe {nfe}: give a number of evaluations, 1 or more")
    if nfe is not None and file is None:
        raise InputError(
            f"--nfe {nfe} takes a sampler that a sweep found: give --sampler SWEEP too; without a sweep give the "
            f"number of steps, e.g. --set num_steps={nfe // 2 + 1} ({sampler(num_steps=nfe // 2 + 1).nfe} of Heun)"
        )
    if file is not None:
        name = BEST_SAMPLER if nfe is None else BEST_SAMPLERS
        path = uris.join(file, name) if uris.is_folder(file) else file
        if not uris.exists(path):
            raise InputError(_missing(file, name))
        if (size := uris.file_size(path)) is not None and size > MAX_BYTES:
            raise InputError(f"{path}: {size:,} bytes, so it is no {name} of a sweep; give that file, or its folder")
        text = uris.read_bytes(path, MAX_BYTES)
        base = settings_from_yaml(text, path) if nfe is None else sampler_at(text, nfe, path)
    settings = with_changes(base, parse_overrides(overrides), "--set")
    if isinstance(settings, Euler) and settings.s_churn > settings.churn_cap:
        say(
            f"  s_churn={settings.s_churn:g} acts as {settings.churn_cap:.4g}: it is capped at "
            f"num_steps * (sqrt(2) - 1) for num_steps={settings.num_steps}"
        )
    return settings


def _missing(place: str, name: str) -> str:
    """Why there is no sampler to take: what is there, and what to give."""
    if not uris.is_folder(place):
        return f"{place}: nothing is there; give the --out of a sweep (it writes {name}), or the file"
    if name == BEST_SAMPLER and uris.exists(uris.join(place, BEST_SAMPLERS)):
        return f"{place}: has a sampler for each budget, in {BEST_SAMPLERS}: give --nfe to take one of them"
    if name == BEST_SAMPLERS and uris.exists(uris.join(place, BEST_SAMPLER)):
        return f"{place}: holds one sampler, in {BEST_SAMPLER}, not one for each budget: leave --nfe out"
    if nested := [each for each in uris.list_names(place) if uris.exists(uris.join(place, each, name))]:
        return (
            f"{place}: no {name} is there, but in {', '.join(uris.join(place, each) for each in nested[:4])}; give one"
        )
    writes = f"`edm-ray sweep{' --nfe' if name == BEST_SAMPLERS else ''}` writes it when it has ended"
    return f"{place}: no {name} is there; {writes}"
