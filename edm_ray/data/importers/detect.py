"""Which importer a source needs: said by ``--kind``, else seen from its name and what is in it."""

from __future__ import annotations

from collections.abc import Callable

from edm_ray.data.importers import tar
from edm_ray.data.importers.cifar import Cifar
from edm_ray.data.importers.digits import Digits
from edm_ray.data.importers.files import is_folder, list_tree
from edm_ray.data.importers.folder import Folder
from edm_ray.data.importers.idx import IMAGES, Idx
from edm_ray.data.importers.latents import latents_source
from edm_ray.data.importers.listing import is_picture
from edm_ray.data.importers.npz import Npz
from edm_ray.data.importers.parquet import Parquet
from edm_ray.data.importers.photographs import Photographs
from edm_ray.data.importers.source import PICTURE_SUFFIXES, KindError, Source, SourceSpec
from edm_ray.data.importers.splits import says_split
from edm_ray.data.importers.zipped import Zip
from edm_ray.errors import InputError, nearest
from edm_ray.storage import uris

BUILT_IN: dict[str, Callable[[SourceSpec], Source]] = {
    "digits": Digits,
    "photographs": Photographs,
    "more-photographs": Photographs,
}
KINDS: dict[str, Callable[[SourceSpec], Source]] = {
    **BUILT_IN,
    "folder": Folder,
    "zip": Zip,
    "cifar": Cifar,
    "idx": Idx,
    "parquet": Parquet,
    "tar": tar.Tar,
    "npz": Npz,
    "latents": latents_source,
}
_CIFAR_PARTS = ("data_batch_1", "batches.meta")
_SINGLE = ("zip", "npz")
"""One file is a data set."""
_LOOKED_FOR = (
    f"digits, photographs, .zip, .npz, .parquet, .tar, cifar-*.tar.gz, *-images-idx3-ubyte, or a folder with pictures "
    f"({', '.join(PICTURE_SUFFIXES)}) or with .parquet, .tar, cifar or idx files"
)


def open_source(spec: SourceSpec) -> Source:
    if spec.kind not in KINDS:
        raise InputError(f"--kind {spec.kind}: unknown{nearest(spec.kind, KINDS)}; there are: {', '.join(KINDS)}")
    if spec.kind in _SINGLE and is_folder(spec.uri):
        raise InputError(_a_folder_of(spec.uri, spec.kind))
    try:
        return KINDS[spec.kind](spec)
    except UnicodeError as error:  # names of columns, arrays and members that libraries decode
        raise InputError(f"{spec.uri}: holds names or labels that are not UTF-8: {error}; it is damaged") from error


def detect_kind(uri: str) -> str:
    """Raises InputError saying what was looked for, or which kinds a folder may be of."""
    if uri in BUILT_IN:
        return uri
    if not uris.exists(uri):
        raise InputError(f"{uri}: no such file or folder, nor one of {', '.join(BUILT_IN)}{nearest(uri, BUILT_IN)}")
    if not is_folder(uri):
        if (kind := _of_file(uri)) is None:
            raise InputError(f"{uri}: not seen what this is; give --kind. Looked for: {_LOOKED_FOR}")
        return kind
    kinds: dict[str, str] = {}
    for name in list_tree(uri):
        if (kind := _of_file(name) or ("folder" if is_picture(name) else None)) is not None:
            kinds.setdefault(kind, name)
    if len(kinds) != 1:
        found = ", ".join(f"{kind} ({name})" for kind, name in kinds.items())
        if kinds:
            raise KindError(f"{uri}: may be of several kinds: {found}; give --kind")
        raise InputError(f"{uri}: nothing usable. Looked for: {_LOOKED_FOR}")
    return next(iter(kinds))


def _a_folder_of(uri: str, kind: str) -> str:
    files = [name for name in list_tree(uri) if _of_file(name) == kind]
    if not files:
        return f"{uri}: a folder without .{kind} files; --kind {kind} reads one file"
    rest = f", not its {len(files)} files together" if files[1:] else ""
    return f"{uri}: a folder, and a data set of kind {kind} is one file: give {uris.join(uri, files[0])}{rest}"


def _of_file(path: str) -> str | None:
    name = path.rsplit("/", 1)[-1].lower()
    if IMAGES.search(name):
        return "idx"
    if name in _CIFAR_PARTS or (name.startswith("cifar") and name.endswith(tar.SUFFIXES) and not says_split(name)):
        return "cifar"
    if name.endswith(tar.SUFFIXES):
        return "tar"
    return next((kind for kind in ("zip", "npz", "parquet") if name.endswith(f".{kind}")), None)
