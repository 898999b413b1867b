"""What a run with on_damage=skip has left out: ``RUN/skipped-shards/SHARD.json``, a file a shard, with the reason.

Any worker may find a damaged shard, and several may find the same one: each writes its file, and they are the same.
"""

from __future__ import annotations

import logging
from typing import Any

from edm_ray.data.fetch import SkippedShards
from edm_ray.storage import uris
from edm_ray.storage.versioned import read_json, write_json

logger = logging.getLogger(__name__)
FOLDER = "skipped-shards"


class SkippedLog:
    """Writes down what is new in ``skipped``."""

    def __init__(self, run_uri: str, skipped: SkippedShards) -> None:
        self.run_uri, self.skipped, self._written = run_uri, skipped, 0

    def update(self) -> None:
        new = list(self.skipped.shards.items())[self._written :]
        for shard, reason in new:
            logger.warning("%s: skipped: %s", shard, reason)
            content = {"shard": shard, "reason": reason, "rows": self.skipped.rows_of[shard]}
            write_json(uris.join(self.run_uri, FOLDER, f"{shard}.json"), content)
        self._written += len(new)


def read_skipped(run_uri: str) -> list[dict[str, Any]]:
    """``shard``, ``reason``, ``rows`` of every shard that the run has skipped, by name."""
    folder = uris.join(run_uri, FOLDER)
    return [read_json(uris.join(folder, name), "delete that file") for name in uris.list_names(folder)]


def skipped_lines(run_uri: str, most: int = 5) -> list[str]:
    """For people; nothing where nothing was skipped."""
    skipped = read_skipped(run_uri)
    if not skipped:
        return []
    rows = sum(entry["rows"] for entry in skipped)
    lines = [f"skipped {len(skipped)} damaged shards of {rows:,} rows in all; in their place others were trained on:"]
    lines += [f"  {entry['reason']}" for entry in skipped[:most]]
    more = len(skipped) - most
    return lines + ([f"  ... and {more} more, in {uris.join(run_uri, FOLDER)}"] if more > 0 else [])
