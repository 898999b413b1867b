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
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edm_ray.errors import InputError, IntegrityError, nearest, shortened
from edm_ray.storage import uris
from edm_ray.storage.documents import MAX_BYTES, load_json

MANIFEST = "manifest.json"
FORMAT = 1
"""Of directories with a manifest. Another one is refused in words."""
SEAL = "sha256"
"""Key of a manifest's own hash, over all of its other keys."""
NEWER = "a newer version of edm_ray may have written it"
_NAME = re.compile(r"[^/\\\x00-\x1f:]{1,255}")
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
    content = sealed(manifest)
    path = uris.join(uri, MANIFEST)
    if replace:
        uris.write_bytes(path, content)
    elif not uris.create_bytes(path, content):
        there, new = _committed(uri), json.loads(json.dumps(manifest))
        if there is None:
            uris.write_bytes(path, content)
        elif there != new:
            raise _taken(uri, ", ".join(key for key in sorted({*there, *new}) if there.get(key) != new.get(key)))
    return manifest


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """Text of a manifest, with its own hash: a byte of it that changes is damage, not content."""
    whole = {**manifest, SEAL: manifest_hash(manifest)}
    return json.dumps(whole, indent=1, sort_keys=True, allow_nan=False).encode()


def read_manifest(uri: str) -> dict[str, Any] | None:
    """The manifest, or None when the directory does not exist (nothing there, or half-written).

    Raises IntegrityError when a byte of it was changed, InputError for another format, or names that lead outside.
    """
    path = uris.join(uri, MANIFEST)
    try:
        content = uris.read_bytes(path, MAX_BYTES)
    except uris.NotFound:
        return None
    try:
        manifest = load_json(content, path)
    except InputError as error:
        raise IntegrityError(f"{error}; the directory is damaged, write it again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{path}: not a manifest of edm_ray (no 'files' table)")
    if manifest.get("format") != FORMAT:
        got = shortened(manifest.get("format"))
        raise InputError(f"{path}: format {got}; this version of edm_ray reads format {FORMAT}")
    if manifest.pop(SEAL, None) is None:
        raise IntegrityError(f"{path}: lacks its own hash ({SEAL!r}): damaged, or of an older edm_ray; write it again")
    if sealed(manifest) != content:
        raise IntegrityError(f"{path}: was changed after it was written; the directory is damaged, write it again")
    for name, entry in manifest["files"].items():
        _check_entry(path, name, entry)
    return manifest


def _check_entry(path: str, name: str, entry: object) -> None:
    if not all(_NAME.fullmatch(part) and part not in (".", "..") for part in name.split("/")) or name == MANIFEST:
        raise InputError(f"{path}: lists the file {shortened(name)}, which is no file inside of the directory; refused")
    fits = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}
    if not isinstance(entry, dict) or not fits or type(entry["bytes"]) is not int or entry["bytes"] < 0:
        raise InputError(f"{path}: size and sha256 are needed of {name}, got {shortened(entry)}")


def open_manifest(uri: str, kind: str, keys: Iterable[str], files: Iterable[str]) -> dict[str, Any] | None:
    """`read_manifest` of a directory of this kind, with these keys at most and no files but these.

    Raises InputError for another kind, and for a key or file that this version does not know.
    """
    manifest, path = read_manifest(uri), uris.join(uri, MANIFEST)
    if manifest is None:
        return None
    if manifest.get("kind") != kind:
        what = kind.removeprefix("edm_ray ")
        raise InputError(f"{uri}: holds {shortened(manifest.get('kind', 'something else'))}, not a {what}")
    check_keys(manifest, path, keys)
    if others := sorted(set(manifest["files"]) - set(files)):
        raise InputError(f"{path}: lists the file {shortened(others[0])}, which is no part of a {kind}; refused")
    return manifest


def manifest_kind(uri: str) -> str | None:
    """What a directory says that it is; None where it says nothing, or its manifest.json is not ours."""
    try:
        manifest = read_manifest(uri)
    except InputError:
        return None
    return None if manifest is None else str(manifest.get("kind"))


def nested(uri: str, kind: str) -> list[str]:
    """The directories of a kind that lie in a folder, for a message."""
    return [place for name in uris.list_names(uri) if manifest_kind(place := uris.join(uri, name)) == kind]


def require_no_other(uri: str, allowed: str | None = None) -> None:
    """Raises InputError for a folder that holds a model, a reference or a data set: other files must not mix with it.

    allowed: the kind that may be there. A manifest.json that is not ours is no obstacle.
    """
    if (kind := manifest_kind(uri)) is not None and kind != allowed:
        what = shortened(kind.removeprefix("edm_ray "))
        raise InputError(f"{uri}: holds {what}; other files must not mix with it: give another place")


def check_keys(manifest: Mapping[str, Any], path: str, known: Iterable[str]) -> None:
    """Refuse what this version does not know: it would be left out without a word."""
    known = {*known, "kind", "format", "files"}
    if unknown := sorted(set(manifest) - known):
        raise InputError(f"{path}: unknown key {shortened(unknown[0])}{nearest(unknown[0], known)}; {NEWER}")


def read_file(uri: str, name: str, manifest: Mapping[str, Any]) -> bytes:
    """One file, its size and hash checked. Raises IntegrityError naming the path and what differs."""
    path = uris.join(uri, name)
    entry = manifest["files"].get(name)
    if entry is None:
        raise IntegrityError(f"{path}: not listed in {uris.join(uri, MANIFEST)}")
    uris.refuse_link_out(uri, name)
    content = uris.read_bytes(path, entry["bytes"])
    if len(content) != entry["bytes"]:
        raise IntegrityError(f"{path}: {len(content)} bytes, the manifest says {entry['bytes']}: truncated or replaced")
    if sha256(content) != entry["sha256"]:
        raise IntegrityError(f"{path}: sha256 differs from the manifest: the file was changed after it was written")
    return content


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Identity of the directory's content (not of where it lies)."""
    return sha256(canonical_json(manifest).encode())
