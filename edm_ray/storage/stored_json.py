"""JSON that lies in storage: what cannot be read is said in a line, with the fix."""

from __future__ import annotations

import json
from typing import Any

from edm_ray.errors import IntegrityError
from edm_ray.storage import uris


def read_object(uri: str, fix: str) -> dict[str, Any]:
    """The JSON object in a file. Raises NotFound, and IntegrityError, which ends with ``fix``, for anything else."""
    return parse_object(uris.read_bytes(uri), uri, fix)


def parse_object(content: bytes, what: str, fix: str) -> dict[str, Any]:
    """Raises IntegrityError for what is no JSON object; ``what`` names it."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what}: damaged, not JSON ({error}); {fix}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{what}: damaged, not a JSON object; {fix}")
    return value
