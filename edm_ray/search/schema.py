"""JSON schema of a tune space, for editors: python -m edm_ray.search.schema > tune_spaces/schema.json"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from edm_ray.diffusion.samplers import SOLVERS
from edm_ray.diffusion.samplers.base import settings
from edm_ray.search.space import Space

SAMPLER = {"$ref": "#/$defs/Sampler"}


def schema() -> dict[str, Any]:
    """Generated from the dataclasses; nothing but what they name is allowed."""
    content: dict[str, Any] = TypeAdapter(Space).json_schema()
    content["$defs"]["Sampler"] = _sampler()
    for part in (content, *content["$defs"].values()):
        part["additionalProperties"] = False
    properties = content["properties"]
    properties["sampler"] = {"description": "Settings that are not searched.", **SAMPLER}
    properties["starts"]["additionalProperties"] = SAMPLER
    properties["search"]["minProperties"] = 1
    content["required"] = ["name", "search"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edm_ray tune space", **content}


def _sampler() -> dict[str, Any]:
    """The flat form: what any solver has; which of them have it is for the reader to check."""
    solvers = {name: cls for name, cls in SOLVERS.items() if cls.__module__.startswith("edm_ray.")}
    properties: dict[str, Any] = {"solver": {"enum": list(solvers), "default": "heun"}}
    for cls in solvers.values():
        known = TypeAdapter(cls).json_schema()["properties"]
        properties |= {each.name: known[each.name] for each in settings(cls)}
    for each in properties.values():
        if each.get("default") == float("inf"):  # written in YAML it is a number; JSON schema has no word for it
            del each["default"]
    return {"title": "Sampler", "description": "A sampler's settings.", "type": "object", "properties": properties}


def text() -> str:
    return json.dumps(schema(), indent=1, allow_nan=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
