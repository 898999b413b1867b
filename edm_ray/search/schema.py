"""JSON schema of a tune space, for editors: python -m edm_ray.search.schema > tune_spaces/schema.json"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from edm_ray.search.space import Space


def schema() -> dict[str, Any]:
    """Generated from the dataclass; nothing but what it names is allowed."""
    content: dict[str, Any] = TypeAdapter(Space).json_schema()
    for part in (content, *content["$defs"].values()):
        part["additionalProperties"] = False
        for key in list(part["properties"]):
            # Written in YAML, infinity is a number; JSON schema has no word for the default.
            if part["properties"][key].get("default") == float("inf"):
                del part["properties"][key]["default"]
    content["required"] = ["name", "search"]
    content["properties"]["search"]["minProperties"] = 1
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edm_ray tune space", **content}


def text() -> str:
    return json.dumps(schema(), indent=1, allow_nan=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
