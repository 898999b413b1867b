"""Snapshots of a run: RUN/snapshots/<nimg>/model (its averages then), samples.png beside it, and a row for each in
RUN/snapshots/snapshots.jsonl. Nothing here draws; `edm_ray.distributed.snapshots` has it done."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from edm_ray.storage import uris
from edm_ray.storage.commit import canonical_json, read_manifest, sha256

Record = dict[str, Any]
SHOWN = 12
"""So many FIDs are listed at the end of a command; all are in snapshots.jsonl."""


def snapshots_uri(run_uri: str) -> str:
    return uris.join(run_uri, "snapshots")


def snapshot_folder(run_uri: str, nimg: int) -> str:
    return uris.join(snapshots_uri(run_uri), f"{nimg:012d}")


def snapshot_model_uri(run_uri: str, nimg: int) -> str:
    return uris.join(snapshot_folder(run_uri, nimg), "model")


def picture_uri(run_uri: str, nimg: int) -> str:
    return uris.join(snapshot_folder(run_uri, nimg), "samples.png")


def snapshot_moments(run_uri: str) -> list[int]:
    """Images seen of every snapshot that was begun, ascending."""
    return sorted(int(name) for name in uris.list_names(snapshots_uri(run_uri)) if name.isdecimal())


def snapshot_weights(run_uri: str, nimg: int) -> str | None:
    """sha256 of a snapshot's weights; None while its model is not whole. Raises IntegrityError for a damaged one."""
    manifest = read_manifest(snapshot_model_uri(run_uri, nimg))
    return None if manifest is None else str(manifest["files"]["model.safetensors"]["sha256"])


def record_key(how: dict[str, Any], nimg: int, weights_sha256: str) -> str:
    """Identity of a drawing: the snapshot's moment and weights, and how it is drawn and measured (`how`)."""
    return sha256(canonical_json([how_key(how), nimg, weights_sha256]).encode())


def how_key(how: dict[str, Any]) -> str:
    return sha256(canonical_json(how).encode())


def log_uri(run_uri: str) -> str:
    return uris.join(snapshots_uri(run_uri), "snapshots.jsonl")


def read_log(run_uri: str) -> list[Record]:
    path = log_uri(run_uri)
    return [json.loads(line) for line in uris.read_bytes(path).splitlines()] if uris.exists(path) else []


def add_to_log(run_uri: str, record: Record) -> None:
    """Append a row; one of the same moment drawn in the same way (of other weights, then) is replaced. The file is
    rewritten whole, so it is never half a line and works on object stores."""
    same = (record["nimg"], record["how"])
    rows = [row for row in read_log(run_uri) if (row["nimg"], row["how"]) != same]
    rows = sorted([*rows, record], key=lambda row: row["nimg"])
    uris.write_bytes(log_uri(run_uri), "".join(json.dumps(row) + "\n" for row in rows).encode())


class FidRows:
    """FIDs on their way to trackers, which take rows in ascending order only: each goes with the next new row of
    metrics, those that are left at the end behind the last one. ``last``: images seen in the last row there is."""

    def __init__(self, last: int) -> None:
        self.last, self.waiting = last, deque[Record]()

    def add(self, record: Record) -> None:
        if "fid" in record:
            self.waiting.append(record)

    def onto(self, row: Record) -> Record:
        if row["nimg"] <= self.last:
            return row
        self.last = row["nimg"]
        return {**row, **_numbers(self.waiting.popleft())} if self.waiting else row

    def rest(self) -> list[Record]:
        rows = []
        while self.waiting:
            self.last += 1
            rows.append({"nimg": self.last, **_numbers(self.waiting.popleft())})
        return rows


def _numbers(record: Record) -> Record:
    return {f"snapshot/{key}": record[key] for key in ("nimg", "fid", "low", "high")}


def fid_lines(run_uri: str, records: Sequence[Record]) -> list[str]:
    """The FIDs of these drawings, the best of them, and what they are of, in words; nothing where there is none."""
    rows = [record for record in records if "fid" in record]
    if not rows:
        return []
    lines = [f"the last {SHOWN} of {len(rows)}:"] if len(rows) > SHOWN else []
    lines += [
        f"{row['nimg']:,} images: FID {row['fid']:.3f}, 95 % interval {row['low']:.3f} to {row['high']:.3f}"
        for row in rows[-SHOWN:]
    ]
    best, seeds = min(rows, key=lambda row: row["fid"]), rows[-1]["fid_seeds"]
    return [
        *lines,
        f"each of n={best['n']} images (seeds {seeds[0]} to {seeds[1]}) against {best['reference']}",
        f"best: {best['nimg']:,} images, {snapshot_model_uri(run_uri, best['nimg'])}",
    ]
