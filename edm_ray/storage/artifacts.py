"""The store of artefacts: whatever is made once and looked up afterwards, one verified file each.

An artefact has an identity: plain JSON that names everything that decides its content. Its key is the hash of that, so
an artefact that exists is never made again, in this run or the next, and one of other settings cannot be taken for it.
Files are safetensors with identity and sha256 in their header; they appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from edm_ray.errors import IntegrityError
from edm_ray.storage import uris
from edm_ray.storage.commit import canonical_json, sha256
from edm_ray.storage.documents import load_json
from edm_ray.storage.outlive import outlived

logger = logging.getLogger(__name__)
FORMAT = 1
"""Of the files. Another one is refused in words."""
HEADER = "edm_ray.artifact"
"""The one key of a file's metadata: safetensors does not fix the order of several, and equal artefacts have equal
bytes."""


class Artifact(Protocol):
    """What can be made, and looked up. ``str()`` of it says to people what it is."""

    @property
    def kind(self) -> str:
        """Its folder in the store, and what messages call it: "chunk"."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON values (`plain`) that decide the content."""


A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    notes: dict[str, str]
    """Words that go with them, such as the kind of device that made them. Not part of the identity."""


def plain(value: Any) -> Any:
    """Values as JSON has them: it knows no infinity, so a float is its text."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def key_of(artifact: Artifact) -> str:
    return sha256(canonical_json(artifact.identity).encode())


def path_of(store: str, artifact: Artifact) -> str:
    key = key_of(artifact)
    return uris.join(store, artifact.kind, key[:2], f"{key}.safetensors")


def write(store: str, artifact: Artifact, arrays: Mapping[str, np.ndarray], **notes: str) -> None:
    """Put the artefact into the store, over whatever is there under its key. A disk that is away or full for a while is
    waited for."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {"format": FORMAT, "identity": artifact.identity, "notes": notes, "sha256": _digest(whole, notes)}
    content, path = safetensors.numpy.save(whole, metadata={HEADER: canonical_json(header)}), path_of(store, artifact)
    outlived(lambda: uris.write_bytes(path, content), path)


def read(store: str, artifact: Artifact) -> Content:
    """As `write` got it. Raises NotFound when it is not there, IntegrityError when the file is damaged, of another
    format or of another identity."""
    path = path_of(store, artifact)
    content = uris.read_bytes(path)
    fix = "delete it and run again"
    try:
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(content)
        metadata = load_json(content[8 : 8 + int.from_bytes(content[:8], "little")], path)["__metadata__"]
        header = load_json(metadata[HEADER], path)
        form, identity, digest = header["format"], canonical_json(header["identity"]), header["sha256"]
        notes: dict[str, str] = header["notes"]
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: not a whole {artifact.kind} ({error}); {fix}") from error
    if form != FORMAT:
        raise IntegrityError(f"{path}: a {artifact.kind} of format {form}, this version reads {FORMAT}; {fix}")
    if identity != canonical_json(artifact.identity):
        raise IntegrityError(f"{path}: holds a {artifact.kind} of other settings; {fix}")
    if digest != _digest(arrays, notes):
        raise IntegrityError(f"{path}: content differs from its hash; {fix}")
    return Content(arrays=arrays, notes=notes)


def exists(store: str, artifact: Artifact) -> bool:
    """Whether there is a file for it; `is_stored` also reads it."""
    return uris.exists(path_of(store, artifact))


def is_stored(store: str, artifact: Artifact) -> bool:
    """Whether the artefact is in the store and whole. A damaged one is named in the log and counts as missing: it is
    made again and overwritten."""
    if not exists(store, artifact):
        return False
    try:
        read(store, artifact)
    except IntegrityError as error:
        logger.warning("%s; it is made again", error)
        return False
    return True


def missing(store: str, artifacts: Iterable[A]) -> list[A]:
    """Those that are not in the store, or not whole."""
    return [artifact for artifact in artifacts if not is_stored(store, artifact)]


def _digest(arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256(canonical_json(notes).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
