"""Sampler settings from a best-sampler.yaml and ``--set`` pairs, shared by the commands that sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edm_ray.cli.console import say
from edm_ray.config.load import configure
from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.errors import InputError
from edm_ray.search.result import settings_from_yaml


def choose_settings(file: str | None, overrides: Sequence[str]) -> SamplerSettings:
    """The file's settings (default: deterministic, 18 steps) with the pairs laid over them."""
    base = SamplerSettings()
    if file is not None:
        if not Path(file).is_file():
            raise InputError(f"--sampler {file}: no such file; `edm-ray sweep` writes best-sampler.yaml")
        base = settings_from_yaml(Path(file).read_text())
    settings = configure(base, None, overrides)
    if settings.s_churn > settings.churn_cap:
        say(
            f"  s_churn={settings.s_churn:g} acts as {settings.churn_cap:.4g}: it is capped at "
            f"num_steps * (sqrt(2) - 1) for num_steps={settings.num_steps}"
        )
    return settings
