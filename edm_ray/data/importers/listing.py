"""Lists of picture files and their labels, shared by folders, zips and tars: classes by first-level subfolder, or the
``dataset.json`` of NVlabs: ``{"labels": [[name, class], ...]}`` or ``{"labels": null}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edm_ray.data.format import Labels
from edm_ray.data.importers.files import is_hidden, readable
from edm_ray.data.importers.source import PICTURE_SUFFIXES, ListingError, SourceSpec, label_table
from edm_ray.data.importers.splits import choose_folders, is_split_word
from edm_ray.errors import InputError, counted, shortened
from edm_ray.storage import uris
from edm_ray.storage.documents import load_json

DATASET_JSON = "dataset.json"


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES) and not is_hidden(name)


@dataclass(frozen=True)
class Listing:
    names: tuple[str, ...]
    """Paths in the source, sorted."""
    labels: Labels
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    table: bytes | None = None
    """The ``dataset.json`` that was used."""


def list_pictures(
    files: Iterable[str], spec: SourceSpec, read: Callable[[str], bytes], *, unwrap: bool = False
) -> Listing:
    """Pictures among ``files`` with their labels. read: gives the content of a ``dataset.json``.

    unwrap: when everything lies in one folder of folders (an archive of a folder), classes are one level deeper.
    Folders ``train/``, ``test/`` ... are splits, of which one is taken.
    """
    where = spec.uri
    files = [name for name in files if not is_hidden(name)]
    names = sorted(name for name in files if is_picture(name))
    if not names:
        first = f"; it holds {readable(files[0])}" if files else ""
        raise InputError(f"{where}: no pictures ({', '.join(PICTURE_SUFFIXES)}) in it or its subfolders{first}")
    tables = {name for name in files if name.rsplit("/", 1)[-1].lower() == DATASET_JSON}
    prefix, notes = "", _left_aside(files, names)
    for _ in range(3):  # a wrapping folder, a folder of a split, a wrapping folder
        if _table_in(tables, prefix):
            break
        if unwrap or _table_in(tables, _only_folder(names, prefix)):
            prefix, said = _unwrapped(names, prefix, tables)
            notes += said
            if _table_in(tables, prefix):
                break
        chosen, said = choose_folders([name[len(prefix) :] for name in names], spec.split, where)
        if not chosen:
            break
        prefix, notes = prefix + chosen, notes + said
        names = [name for name in names if name.startswith(prefix)]
    table = _table_in(tables, prefix)
    if unused := sorted(tables - {table}):
        notes += (f"{len(unused):,} {DATASET_JSON} are not used (the first: {readable(unused[0])})",)
    content = None if table is None or spec.unlabelled else read(table)
    values: list[int | str | None] | None
    if content is not None:
        values, said = _nvlabs_labels(content, [name[len(prefix) :] for name in names], f"{where}: {table}")
    else:
        values, said = (None, ()) if spec.unlabelled else _folder_labels(names, prefix, where)
    labels, class_names = label_table([0] * len(names) if values is None else values, where)
    return Listing(tuple(names), labels, () if values is None else class_names, (*notes, *said), content)


def _left_aside(files: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Notes on files that are no pictures, and on folders which hold nothing else."""
    taken = set(names)
    others = [name for name in files if name not in taken and name.rsplit("/", 1)[-1].lower() != DATASET_JSON]
    notes = []
    if others:
        which = "is not a picture" if len(others) == 1 else "are not pictures"
        notes.append(f"ignored {counted(len(others), 'file')} that {which} (the first: {readable(others[0])})")
    folders = {name.rpartition("/")[0] for name in names}
    with_pictures = {"/".join(f.split("/")[:depth]) for f in folders for depth in range(f.count("/") + 2)}
    if without := sorted({name.rpartition("/")[0] for name in others if "/" in name} - with_pictures):
        shown = ", ".join(readable(name) for name in without[:5])
        notes.append(f"ignored {counted(len(without), 'folder')} without a readable picture ({shown})")
    return tuple(notes)


def _table_in(tables: set[str], prefix: str | None) -> str | None:
    return next(
        (name for name in tables if prefix is not None and name.lower() == f"{prefix}{DATASET_JSON}".lower()), None
    )


def _only_folder(names: Sequence[str], prefix: str) -> str | None:
    """The one folder in which all of the names lie."""
    tops = {name[len(prefix) :].partition("/")[:2] for name in names}
    return f"{prefix}{next(iter(tops))[0]}/" if len(tops) == 1 and next(iter(tops))[1] else None


def _unwrapped(names: Sequence[str], prefix: str, tables: set[str]) -> tuple[str, tuple[str, ...]]:
    inner = _only_folder(names, prefix)
    if inner is None or is_split_word(inner[len(prefix) : -1]):
        return prefix, ()
    if _table_in(tables, inner):
        return inner, (f"everything lies in {readable(inner)}, and the {DATASET_JSON} in it says the classes",)
    if all("/" in name[len(inner) :] for name in names):
        return inner, (f"everything lies in {readable(inner)}, so the folders in that are the classes",)
    return prefix, ()


def _folder_labels(
    names: Sequence[str], prefix: str, where: str
) -> tuple[list[int | str | None] | None, tuple[str, ...]]:
    """The first folder of each name below the prefix; None where there are no folders."""
    parts = [name[len(prefix) :].split("/") for name in names]
    tops = sorted({p[0] for p in parts if len(p) > 1})
    loose = [p[0] for p in parts if len(p) == 1]
    if tops and loose:
        raise ListingError(
            f"{where}: {readable(prefix + loose[0])} lies beside class folders "
            f"({', '.join(map(readable, tops[:3]))}...); put every picture into a class folder, or none, or give "
            "--unlabelled"
        )
    if not tops:
        return None, ("no subfolders: no classes",)
    notes: tuple[str, ...] = ()
    if len(tops) == 1 and len({p[1] for p in parts if len(p) > 2}) > 1:
        place = uris.join(where, readable(prefix + tops[0]))
        notes = (f"one class, {readable(tops[0])}; when the folders in it are the classes, give {place}",)
    return [readable(p[0]) for p in parts], notes


def _nvlabs_labels(
    content: bytes, names: Sequence[str], path: str
) -> tuple[list[int | str | None] | None, tuple[str, ...]]:
    table = load_json(content, path)
    if isinstance(table, dict) and "labels" in table and table["labels"] is None:
        return None, (f"{DATASET_JSON} holds no labels: no classes",)
    rows = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(rows, list):
        got = type(rows if isinstance(table, dict) and "labels" in table else table).__name__
        raise InputError(
            f'{path}: labels are missing: {{"labels": [[name, class], ...]}} is needed ("labels": null: no classes), '
            f"got a {got}; fix it, or give --unlabelled"
        )
    by_name: dict[str, int] = {}
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or type(row[1]) is not int:
            raise InputError(f"{path}: labels must be [name, whole number], got {shortened(row)}")
        name = row[0].replace("\\", "/")
        if name in by_name:
            raise InputError(f"{path}: {shortened(name)} is listed twice")
        by_name[name] = row[1]
    there = set(names)
    if missing := [name for name in by_name if name not in there]:
        raise InputError(f"{path}: lists {shortened(missing[0])}, which is not there ({len(missing):,} such names)")
    return [by_name.get(name) for name in names], ()
