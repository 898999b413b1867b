"""Sampler settings from a best-sampler.yaml and ``--set`` pairs, shared by the commands that sample."""

from __future__ import annotations

from collections.abc import Sequence

from edm_ray.cli.console import say
from edm_ray.config.load import parse_overrides
from edm_ray.config.text import MAX_BYTES
from edm_ray.diffusion.samplers import Euler, Sampler, sampler, with_changes
from edm_ray.errors import InputError
from edm_ray.search.sampler_file import settings_from_yaml
from edm_ray.storage import uris

BEST_SAMPLER = "best-sampler.yaml"


def choose_settings(file: str | None, overrides: Sequence[str]) -> Sampler:
    """The file's settings (default: deterministic, 18 steps) with the pairs laid over them.

    file: a path or s3:// URI of a best-sampler.yaml, or of a directory that holds one (a sweep's, a model's)."""
    base: Sampler = sampler()
    if file is not None:
        path = uris.join(file, BEST_SAMPLER) if uris.is_folder(file) else file
        if not uris.exists(path):
            raise InputError(f"--sampler {file}: no such file; `edm-ray sweep` writes {BEST_SAMPLER}")
        base = settings_from_yaml(uris.read_bytes(path, MAX_BYTES), path)
    settings = with_changes(base, parse_overrides(overrides), "--set")
    if isinstance(settings, Euler) and settings.s_churn > settings.churn_cap:
        say(
            f"  s_churn={settings.s_churn:g} acts as {settings.churn_cap:.4g}: it is capped at "
            f"num_steps * (sqrt(2) - 1) for num_steps={settings.num_steps}"
        )
    return settings
