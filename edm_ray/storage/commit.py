"""A directory exists only when its manifest does: files first, ``manifest.json`` with their sizes and hashes last.

Data sets, checkpoints, model directories and references are all kept so. What a dead writer left behind has no
manifest, is ignored by readers and overwritten by the next writer.

Of two writers at one place one wins: a manifest is put only where there is none (a conditional put on S3, a hard link
locally). The same content may be committed again. Files that two writers mixed before either had its manifest are found
by the hashes when they are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris

MANIFEST = "manifest.json"
FORMAT = 1
"""Of directories with a manifest. Another one is refused in words."""
logger = logging.getLogger(__name__)


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def commit(uri: str, files: Iterable[tuple[str, bytes]], replace: bool = False, **facts: Any) -> dict[str, Any]:
    """Write the files one at a time, then the manifest: ``facts`` plus name, size and sha256 of every file.

    Raises InputError, before a file is changed, when other content is committed there; ``replace`` overwrites it.
    """
    there = None if replace else _committed(uri)

    def checked() -> Iterator[tuple[str, bytes]]:
        for name, content in files:
            if there is not None and there["files"].get(name, {}).get("sha256") != sha256(content):
                raise _taken(uri, name)
            yield name, content

    return publish(uri, write_files(uri, checked()), replace, **facts)


def _committed(uri: str) -> dict[str, Any] | None:
    """The manifest of what is there; a damaged one commits nothing and may be overwritten."""
    try:
        return read_manifest(uri)
    except IntegrityError as error:
        logger.warning("%s", error)
        return None


def _taken(uri: str, what: str) -> InputError:
    return InputError(
        f"{uris.join(uri, MANIFEST)}: other content is committed there already ({what} differs), perhaps by another "
        "writer a moment ago; nothing of it was replaced: choose another place, or delete that directory first"
    )


def write_files(uri: str, files: Iterable[tuple[str, bytes]]) -> dict[str, dict[str, Any]]:
    """Write files without publishing them; returns their manifest entries."""
    entries = {}
    for name, content in files:
        uris.write_bytes(uris.join(uri, name), content)
        entries[name] = {"bytes": len(content), "sha256": sha256(content)}
    return entries


def publish(uri: str, entries: Mapping[str, Mapping[str, Any]], replace: bool = False, **facts: Any) -> dict[str, Any]:
    """Write the manifest: from here on the directory exists. Raises InputError when another one is there."""
    manifest = {**facts, "format": FORMAT, "files": {name: dict(entry) for name, entry in entries.items()}}
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    path = uris.join(uri, MANIFEST)
    if replace:
        uris.write_bytes(path, text.encode())
    elif not uris.create_bytes(path, text.encode()):
        there, new = _committed(uri), json.loads(text)
        if there is None:
            uris.write_bytes(path, text.encode())
        elif there != new:
            raise _taken(uri, ", ".join(key for key in sorted({*there, *new}) if there.get(key) != new.get(key)))
    return manifest


def read_manifest(uri: str) -> dict[str, Any] | None:
    """The manifest, or None when the directory does not exist (nothing there, or half-written)."""
    path = uris.join(uri, MANIFEST)
    try:
        manifest = json.loads(uris.read_bytes(path))
    except uris.NotFound:
        return None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not JSON ({error}); the directory is damaged, write it again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{path}: not a manifest of edm_ray (no 'files' table)")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format {manifest.get('format')!r}; this version of edm_ray reads format {FORMAT}")
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
