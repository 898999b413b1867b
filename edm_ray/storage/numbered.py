"""Directories that are named by a number: checkpoints and snapshots by images seen."""

from __future__ import annotations

import logging
import re

from edm_ray.storage import uris

logger = logging.getLogger(__name__)
_named: set[tuple[str, str]] = set()


def numbers(uri: str, form: str) -> list[int]:
    """Ascending numbers N of the names ``form.format(N)`` directly below a directory.

    Whatever else lies there, such as a copy by hand (``nimg-000000000600.bak``), is left alone; it is named in the log,
    once a process.
    """
    found, strays = [], []
    for name in uris.list_names(uri):
        digits = re.findall(r"\d+", name)
        if digits and form.format(int(digits[0])) == name:
            found.append(int(digits[0]))
        elif (uri, name) not in _named:
            _named.add((uri, name))
            strays.append(name)
    if strays:
        logger.warning("%s: ignored, since no run has such names: %s", uri, ", ".join(strays))
    return sorted(found)
