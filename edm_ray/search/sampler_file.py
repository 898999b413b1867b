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
        "found_by": {"space": result.space, "strategy": result.strategy, **source, **about_confirmed(best)},
    }
    others = [entry for entry in result.confirmed if entry.label in (*result.front, result.cheapest)]
    others = sorted((entry for entry in others if entry.label != best.label), key=lambda entry: entry.settings.nfe)
    if others:
        content["alternatives"] = [
            {
                "label": entry.label,
                "nfe": entry.settings.nfe,
                "cheapest_within_percent": result.within if entry.label == result.cheapest else None,
                **about_confirmed(entry),
                "sampler": entry.settings.to_dict(),
            }
            for entry in others
        ]
    text = yaml.safe_dump(as_lists(content), sort_keys=False)
    estimate = best.estimate
    head = f"# {best.settings}: FID {estimate.fid:.3f} +- {estimate.se:.3f} on {estimate.n:,} fresh images"
    return f"{head}, {best.settings.nfe} evaluations each.\n# Use: edm-ray generate --sampler THIS_FILE ...\n{text}"


def as_lists(value: Any) -> Any:
    """Plain values for a file: YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def about_confirmed(entry: Confirmed) -> dict[str, Any]:
    """Its FID, and what that depends on."""
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
    if isinstance(content.get("samplers"), list):
        raise InputError(f"{source}: holds a sampler for each budget of evaluations; give --nfe to take one")
    if not isinstance(content.get("sampler"), dict):
        raise InputError(f"{source}: key 'sampler' with the settings is missing")
    return read_sampler(content["sampler"], source)
