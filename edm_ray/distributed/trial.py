"""What runs inside a trial of a sweep: it asks for its FID, and waits.

Nothing heavy is imported here, nor needed to unpickle what a trial is given: each trial in flight is a process, and one
that imports torch takes seconds of CPU and hundreds of megabytes to do nothing but wait.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from edm_ray.errors import InputError


def evaluate(config: dict[str, Any], dispatchers: Any, request: Sequence[Any]) -> dict[str, Any]:
    """One evaluation, by the pools' dispatchers.

    ``request`` holds one reference (`edm_ray.distributed.requests`), so that what it refers to goes to those who use
    it. What fails for good is the result (``failure``): run again it would fail again. A lost process or node is
    raised, and Tune runs the trial again.
    """
    started = time.monotonic()
    wanted = (config["settings"], config["pool"], config["chunks"], config["chunk_size"])
    try:
        found = ray.get(dispatchers.answer.remote(request[0], *wanted))
    except RayTaskError as error:
        return {"fid": math.nan, "failure": _told(error)}
    estimate = found["estimate"]
    return {
        "fid": estimate["fid"],
        "debiased": estimate["debiased"],
        "se": estimate["se"],
        "n": estimate["n"],
        "generated": found["generated"],
        "seconds": time.monotonic() - started,
        "estimate": json.dumps(estimate),  # as text: Tune would flatten it
    }


def _told(error: RayTaskError) -> str:
    """The cause in a line; one that nobody expected with its type."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    first = (str(cause).strip().splitlines() or [""])[0]
    return first if isinstance(cause, InputError) else f"{type(cause).__name__}: {first}"
