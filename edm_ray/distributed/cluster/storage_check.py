"""Whether a storage place works and is one place for all nodes: the driver leaves a token there, each node tries it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from edm_ray.errors import InputError
from edm_ray.storage import uris

MARKER = ".edm-ray-doctor-"
"""What is written to a storage to try it has a name that begins so; nothing of it stays."""


@contextmanager
def marked(storage: str | None) -> Iterator[str]:
    """A token, which this process leaves at ``storage`` for the nodes to find; nothing stays.

    A place that cannot be written to is left to the nodes to complain about: they know more about it.
    """
    token = uuid.uuid4().hex
    marker = None if storage is None else uris.join(storage, f"{MARKER}{token}")
    try:
        if marker is not None:
            try:
                uris.write_bytes(uris.join(marker, "driver"), token.encode())
            except (OSError, InputError):
                marker = None
        yield token
    finally:
        if marker is not None:
            uris.delete_directory(marker)


def check_storage(storage: str, token: str, node: str) -> str:
    """Write, list, read and delete below ``storage``, and read what the driver wrote; what failed, or ''."""
    own = uris.join(storage, f"{MARKER}{token}", node)
    step = "write"
    try:
        uris.write_bytes(uris.join(own, "probe"), token.encode())
        step = "list"
        if "probe" not in uris.list_names(own):
            return f"list: what was written to {own} is not listed"
        step = "read"
        if uris.read_bytes(uris.join(own, "probe")) != token.encode():
            return f"read: what was written to {own} reads differently"
        step = "delete"
        uris.delete_directory(own)
        step = "shared"
        if not uris.exists(uris.join(storage, f"{MARKER}{token}", "driver")):
            return f"shared: {storage} is another place on this node than where the job runs"
    except (OSError, InputError) as error:
        return f"{step}: {' '.join(str(error).split())[:200]}"
    return ""
