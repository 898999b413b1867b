"""A directory exists only when its manifest does: files first, ``manifest.json`` with their sizes and hashes last.

Data sets, checkpoints, model directories and references are all kept so. What a dead writer left behind has no
manifest, is ignored by readers and overwritten by the next writer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from edm_ray.errors import IntegrityError
from edm_ray.storage import uris

MANIFEST = "manifest.json"


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def commit(uri: str, files: Iterable[tuple[str, bytes]], **facts: Any) -> dict[str, Any]:
    """Write the files one at a time, then the manifest: ``facts`` plus name, size and sha256 of every file."""
    return publish(uri, write_files(uri, files), **facts)


def write_files(uri: str, files: Iterable[tuple[str, bytes]]) -> dict[str, dict[str, Any]]:
    """Write files without publishing them; returns their manifest entries."""
    entries = {}
    for name, content in files:
        uris.write_bytes(uris.join(uri, name), content)
        entries[name] = {"bytes": len(content), "sha256": sha256(content)}
    return entries


def publish(uri: str, entries: Mapping[str, Mapping[str, Any]], **facts: Any) -> dict[str, Any]:
    """Write the manifest: from here on the directory exists."""
    manifest = {**facts, "files": {name: dict(entry) for name, entry in entries.items()}}
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    uris.write_bytes(uris.join(uri, MANIFEST), text.encode())
    return manifest


def read_manifest(uri: str) -> dict[str, Any] | None:
    """The manifest, or None when the directory does not exist (nothing there, or half-written)."""
    path = uris.join(uri, MANIFEST)
    if not uris.exists(path):
        return None
    try:
        manifest = json.loads(uris.read_bytes(path))
    except json.JSONDecodeError as error:
        raise IntegrityError(f"{path}: not JSON ({error}); the directory is damaged, write it again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{path}: not a manifest of edm_ray (no 'files' table)")
    return manifest


def read_file(uri: str, name: str, manifest: Mapping[str, Any]) -> bytes:
    """One file, its size and hash checked. Raises IntegrityError naming the path and what differs."""
    path = uris.join(uri, name)
    entry = manifest["files"].get(name)
    if entry is None:
        raise IntegrityError(f"{path}: not listed in {uris.join(uri, MANIFEST)}")
    content = uris.read_bytes(path)
    if len(content) != entry["bytes"]:
        raise IntegrityError(f"{path}: {len(content)} bytes, the manifest says {entry['bytes']}: truncated or replaced")
    if sha256(content) != entry["sha256"]:
        raise IntegrityError(f"{path}: sha256 differs from the manifest: the file was changed after it was written")
    return content


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Identity of the directory's content (not of where it lies)."""
    return sha256(canonical_json(manifest).encode())
