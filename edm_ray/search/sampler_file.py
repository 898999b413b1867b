"""best-sampler.yaml: the sampler that a sweep found, where it comes from, and alternatives."""

from __future__ import annotations

from typing import Any

import yaml

from edm_ray.config.text import parse_yaml
from edm_ray.diffusion.samplers import Sampler, read_sampler
from edm_ray.errors import InputError
from edm_ray.search.result import REWRITE, Confirmed, SweepResult
from edm_ray.storage.versioned import FORMAT, check_format

BEST_SAMPLER = "best-sampler.yaml"
"""Its name in a sweep's folder, and in a model's after `sweep --export`."""


def best_sampler_yaml(result: SweepResult, **source: str) -> str:
    """The winner's settings, where they come from, and alternatives; `settings_from_yaml` reads the winner back."""
    best = result.require_best()
    content: dict[str, Any] = {
        "format": FORMAT,
        "sampler": best.settings.to_dict(),
        "found_by": {"space": result.space, "strategy": result.strategy, **source, **_about(best)},
    }
    others = [entry for entry in result.confirmed if entry.label in (*result.front, result.cheapest)]
    others = sorted((entry for entry in others if entry.label != best.label), key=lambda entry: entry.settings.nfe)
    if others:
        content["alternatives"] = [
            {
                "label": entry.label,
                "nfe": entry.settings.nfe,
                "cheapest_within_percent": result.within if entry.label == result.cheapest else None,
                **_about(entry),
                "sampler": entry.settings.to_dict(),
            }
            for entry in others
        ]
    text = yaml.safe_dump(_lists(content), sort_keys=False)
    return "# The best sampler a sweep found. Use: edm-ray generate --sampler THIS_FILE ...\n" + text


def _lists(value: Any) -> Any:
    """YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _about(entry: Confirmed) -> dict[str, Any]:
    estimate = entry.estimate
    return {
        "extractor": estimate.extractor,
        "reference": estimate.reference,
        "n": estimate.n,
        "fid": round(float(estimate.fid), 4),
        "standard_error": round(float(estimate.se), 4),
    }


def settings_from_yaml(text: str | bytes, source: str = "sampler file") -> Sampler:
    """The sampler of a best-sampler.yaml. Raises InputError naming what is wrong.

    A file without ``format`` is one that a person wrote.
    """
    content = parse_yaml(text, source)
    check_format(content.get("format", FORMAT), source, REWRITE)
    if not isinstance(content.get("sampler"), dict):
        raise InputError(f"{source}: key 'sampler' with the settings is missing")
    return read_sampler(content["sampler"], source)
