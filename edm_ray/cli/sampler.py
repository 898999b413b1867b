"""Sampler settings from a best-sampler.yaml and ``--set`` pairs, shared by the commands that sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    return configure(base, None, overrides)
