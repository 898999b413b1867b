"""Lists of picture files and their labels, shared by folders, zips and tars: classes by first-level subfolder, or the
``dataset.json`` of NVlabs: ``{"labels": [[name, class], ...]}`` or ``{"labels": null}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from edm_ray.data.format import Labels
from edm_ray.data.importers.files import is_hidden
from edm_ray.data.importers.source import PICTURE_SUFFIXES, label_table
from edm_ray.errors import InputError

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


def list_pictures(
    files: Iterable[str], where: str, dataset_json: bytes | None, *, unlabelled: bool, unwrap: bool = False
) -> Listing:
    """Pictures among ``files`` with their labels.

    unwrap: when everything lies in one folder of folders (an archive of a folder), classes are one level deeper.
    """
    files = [name for name in files if not is_hidden(name)]
    names = tuple(sorted(name for name in files if is_picture(name)))
    if not names:
        raise InputError(f"{where}: no pictures ({', '.join(PICTURE_SUFFIXES)}) in it or its subfolders")
    others = [name for name in files if not is_picture(name) and name.rsplit("/", 1)[-1] != DATASET_JSON]
    notes = [f"{len(others):,} files that are no pictures are left aside (the first: {others[0]})"] if others else []
    if unlabelled:
        labels, class_names = label_table([0] * len(names), where)
        return Listing(names, labels, (), tuple(notes))
    if dataset_json is not None:
        values = _nvlabs_labels(dataset_json, names, where)
        if values is None:
            notes.append(f"{DATASET_JSON} holds no labels: no classes")
            return Listing(names, label_table([0] * len(names), where)[0], (), tuple(notes))
        labels, class_names = label_table(values, f"{where}: {DATASET_JSON}")
        return Listing(names, labels, class_names, tuple(notes))
    parts = [name.split("/") for name in names]
    depth = 0
    if unwrap and len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts):
        depth = 1
        notes.append(f"everything lies in {parts[0][0]}/, so the folders in that are the classes")
    tops = sorted({p[depth] for p in parts if len(p) > depth + 1})
    loose = ["/".join(p) for p in parts if len(p) == depth + 1]
    if tops and loose:
        raise InputError(
            f"{where}: {loose[0]} lies beside class folders ({', '.join(tops[:3])}...); put every picture into a class "
            "folder, or none, or give --unlabelled"
        )
    if not tops:
        notes.append("no subfolders: no classes")
        return Listing(names, label_table([0] * len(names), where)[0], (), tuple(notes))
    labels, class_names = label_table([p[depth] for p in parts], where)
    return Listing(names, labels, class_names, tuple(notes))


def _nvlabs_labels(content: bytes, names: tuple[str, ...], where: str) -> list[int | str | None] | None:
    path = f"{where}: {DATASET_JSON}"
    try:
        table = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    rows = table.get("labels") if isinstance(table, dict) else None
    if rows is None:
        return None
    by_name: dict[str, int] = {}
    if not isinstance(rows, list):
        raise InputError(f"{path}: 'labels' must be a list of [name, class], got {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or type(row[1]) is not int:
            raise InputError(f"{path}: labels must be [name, whole number], got {str(row)[:80]}")
        name = row[0].replace("\\", "/")
        if name in by_name:
            raise InputError(f"{path}: {name!r} is listed twice")
        by_name[name] = row[1]
    there = set(names)
    if missing := [name for name in by_name if name not in there]:
        raise InputError(f"{path}: lists {missing[0]!r}, which is not there ({len(missing):,} such names)")
    return [by_name.get(name) for name in names]
