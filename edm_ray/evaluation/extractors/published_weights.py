"""Weights that others have published: where each file is, its hash and licence, and how it is found or fetched.

Looked for in this order: EDM_RAY_WEIGHTS (the file, or a folder that holds it), the package's own cache, torch.hub's.
A file counts only with the published sha256; nothing else is read from these places.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.download import OnBytes, download, no_bytes, sha256_of

VARIABLE, MIRROR = "EDM_RAY_WEIGHTS", "EDM_RAY_WEIGHTS_MIRROR"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of weights, as its makers offer it."""

    extractor: str
    what: str
    address: str
    sha256: str
    """Of the whole file, as independent projects that pin it have recorded it; Inception's begins with what the file's
    name says."""
    size: int
    licence: str
    also_named: tuple[str, ...] = ()
    """Other names of the same bytes."""

    @property
    def file(self) -> str:
        return self.address.rsplit("/", 1)[-1]

    @property
    def source(self) -> str:
        """Where it is fetched from: its address, or a mirror of one's own (the hash is checked all the same)."""
        mirror = os.environ.get(MIRROR)
        return f"{mirror.rstrip('/')}/{self.file}" if mirror else self.address

    def is_at(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self.size and sha256_of(path) == self.sha256

    def offer(self) -> str:
        """In words: which file, how large, under which licence, from where, to where."""
        megabytes = self.size / 2**20
        return f"{self.file} ({megabytes:,.0f} MiB, {self.licence}) from {self.source} to {place_of(self)}"


PUBLISHED = {
    each.extractor: each
    for each in (
        Published(
            extractor="inception",
            what="Inception-v3 of 2015, as torch-fidelity's release v0.2.0 has it",
            address="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            size=95_628_359,
            licence="Apache-2.0",
            also_named=("pt_inception-2015-12-05-6726825d.pth",),
        ),
        Published(
            extractor="dinov2",
            what="DINOv2 ViT-L/14 without registers, as FD-DINOv2 takes it",
            address="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
            sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            size=1_217_586_395,
            licence="Apache-2.0",
        ),
    )
}


def cache_folder() -> Path:
    """Where files are fetched to: EDM_RAY_WEIGHTS where that is a folder (or nothing yet), else ~/.cache."""
    given = _given()
    if given is not None and not given.is_file():
        if given.suffix in (".pth", ".pt", ".safetensors") and not given.is_dir():
            raise InputError(f"{VARIABLE}={given}: no such file; give a file that is there, or a folder for such files")
        return given
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edm_ray" / "weights"


def _given() -> Path | None:
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else None


def place_of(published: Published) -> Path:
    return cache_folder() / published.file


def find_weights(published: Published) -> Path | None:
    """The file, where it is on this machine, whole and with the published hash. Raises InputError where EDM_RAY_WEIGHTS
    names a file that is none of those known here."""
    given = _given()
    if given is not None and given.is_file():
        if published.is_at(given):
            return given
        if not any(other.is_at(given) for other in PUBLISHED.values()):
            known = ", ".join(f"{each.file} (sha256 {each.sha256[:8]}...)" for each in PUBLISHED.values())
            raise InputError(
                f"{VARIABLE}={given}: its sha256 is that of no published file ({known}); give one of these, or a "
                "folder that holds them; other weights are given with --weights"
            )
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    paths = [folder / name for folder in (cache_folder(), hub) for name in (published.file, *published.also_named)]
    return next((path for path in paths if published.is_at(path)), None)


def fetch_weights(published: Published, on_bytes: OnBytes = no_bytes) -> Path:
    """The file, found or downloaded into the cache. Raises InputError, which says what else can be done."""
    if (found := find_weights(published)) is not None:
        return found
    path = place_of(published)
    try:
        download(published.source, path, published.sha256, published.size, on_bytes)
    except InputError as error:
        raise type(error)(
            f"extractor {published.extractor}: its weights could not be downloaded: {error}; {elsewhere(published)}"
        ) from None
    return path


def weights_file(extractor: str, given: str | None, folder: Path, on_bytes: OnBytes = no_bytes) -> Path | None:
    """A local file with an extractor's weights: what was given (an s3:// URI is copied into ``folder``), else the
    published file, found or downloaded; None for an extractor that nobody publishes weights of."""
    if given is not None and not uris.is_remote(given):
        return Path(uris.resolve(given))
    if given is not None:
        local = folder / "weights"
        local.write_bytes(uris.read_bytes(given))
        return local
    return fetch_weights(PUBLISHED[extractor], on_bytes) if extractor in PUBLISHED else None


def elsewhere(published: Published) -> str:
    """What to do on a machine without a network."""
    return (
        f"fetch it where there is a network: `curl -fLO {published.address}` (sha256 {published.sha256}) and put it at "
        f"{place_of(published)} or give --weights FILE"
    )
