"""What a run that skips damage has left out: ``RUN/lost/SHARD.json``, a file a shard, with the reason.

Any worker may find a damaged shard, and several may find the same one: each writes its file, and they are the same.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from edm_ray.data.fetch import Lost
from edm_ray.storage import uris

logger = logging.getLogger(__name__)
FOLDER = "lost"


class DamageLog:
    """Writes down what is new in ``lost``."""

    def __init__(self, run_uri: str, lost: Lost) -> None:
        self.run_uri, self.lost, self._written = run_uri, lost, 0

    def update(self) -> None:
        new = list(self.lost.shards.items())[self._written :]
        for shard, reason in new:
            logger.warning("%s: skipped: %s", shard, reason)
            content = json.dumps({"shard": shard, "reason": reason, "rows": self.lost.rows_of[shard]}).encode()
            uris.write_bytes(uris.join(self.run_uri, FOLDER, f"{shard}.json"), content)
        self._written += len(new)


def read_lost(run_uri: str) -> list[dict[str, Any]]:
    """``shard``, ``reason``, ``rows`` of every shard that the run has skipped, by name."""
    folder = uris.join(run_uri, FOLDER)
    return [json.loads(uris.read_bytes(uris.join(folder, name))) for name in uris.list_names(folder)]


def lost_lines(run_uri: str, most: int = 5) -> list[str]:
    """For people; nothing where nothing was lost."""
    lost = read_lost(run_uri)
    if not lost:
        return []
    rows = sum(entry["rows"] for entry in lost)
    lines = [f"skipped {len(lost)} damaged shards of {rows:,} rows in all; in their place others were trained on:"]
    lines += [f"  {entry['reason']}" for entry in lost[:most]]
    return lines + ([f"  ... and {len(lost) - most} more, in {uris.join(run_uri, FOLDER)}"] if len(lost) > most else [])
