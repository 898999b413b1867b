"""CIFAR-10 and CIFAR-100 as published for Python: a tar.gz of pickles (or the folder it unpacks to).

CIFAR-10: ``data_batch_1..5``, ``test_batch``, ``batches.meta``; CIFAR-100: ``train``, ``test``, ``meta``. Pickles are
read by `unpickle.load_plain`, which runs nothing.
"""

from __future__ import annotations

import bisect
import re
import tarfile
from typing import Any

import numpy as np

from edm_ray.data.format import Pixels
from edm_ray.data.importers.files import is_folder, list_tree, open_unpacked
from edm_ray.data.importers.source import (
    Record,
    SourceSpec,
    check_class_names,
    check_names,
    fingerprint,
    label_table,
)
from edm_ray.data.importers.splits import canonical
from edm_ray.data.importers.unpickle import load_plain
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import sha256

SIDE = 32
MAX_BATCH_BYTES = 1 << 30
BATCHES = {"train": r"data_batch_\d+|train", "test": r"test_batch|test"}
TABLES = {"labels": "label_names", "fine_labels": "fine_label_names", "coarse_labels": "coarse_label_names"}


class Cifar:
    notes: tuple[str, ...] = ()

    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        split = canonical(spec.split)
        if split not in BATCHES:
            raise InputError(f"--split {spec.split}: CIFAR has train and test")
        self._files: dict[str, Any] = self._list()
        self.batches = sorted(name for name in self._files if re.fullmatch(BATCHES[split], name))
        if not self.batches:
            raise InputError(
                f"{spec.uri}: no batches of CIFAR in it (data_batch_1..5 and test_batch, or train and test); "
                f"it holds {', '.join(sorted(self._files)[:6]) or 'nothing'}"
            )
        self._cached: tuple[str, Pixels, list[str]] | None = None
        self.first = [0]
        values: list[int | str | None] = []
        digests, self.table = [], ""
        for batch in self.batches:
            content = self._read(batch)
            digests.append(sha256(content))
            labels = self._labels(self._load(batch, content), batch)
            values += labels
            self.first.append(len(values))
        names = () if spec.unlabelled else self._class_names()
        self.labels, classes = label_table(values, spec.uri, names)
        self.class_names = () if spec.unlabelled else classes
        self.fingerprint = fingerprint("cifar", self.batches, digests, self.table, self.class_names)

    def _list(self) -> dict[str, Any]:
        if is_folder(self.spec.uri):
            return {name.rsplit("/", 1)[-1]: name for name in list_tree(self.spec.uri)}
        self.handle = open_unpacked(self.spec.uri)
        try:
            with tarfile.open(fileobj=self.handle, mode="r:") as archive:
                members = archive.getmembers()
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise InputError(f"{self.spec.uri}: damaged or not a tar: {error}") from error
        check_names([member.name for member in members], self.spec.uri)
        return {m.name.rsplit("/", 1)[-1]: m for m in members if m.isreg()}

    def _read(self, name: str) -> bytes:
        entry = self._files[name]
        if isinstance(entry, str):
            return uris.read_bytes(uris.join(self.spec.uri, entry))
        if entry.size > MAX_BATCH_BYTES:
            raise InputError(f"{self.spec.uri}: {name} has {entry.size:,} bytes, at most {MAX_BATCH_BYTES:,} are read")
        self.handle.seek(entry.offset_data)
        content = self.handle.read(entry.size)
        if len(content) != entry.size:
            raise InputError(f"{self.spec.uri}: the archive ends inside {name}")
        return content

    def _load(self, name: str, content: bytes) -> dict[str, Any]:
        table = load_plain(content, f"{self.spec.uri}: {name}")
        if not isinstance(table, dict):
            raise InputError(f"{self.spec.uri}: {name}: holds a {type(table).__name__}, not the table of a CIFAR batch")
        plain = {_text(key): value for key, value in table.items()}
        if "data" in plain:
            data = plain["data"]
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIDE * SIDE,):
                raise InputError(f"{self.spec.uri}: {name}: 'data' must be uint8 [N, {3 * SIDE * SIDE}]")
        return plain

    def _labels(self, table: dict[str, Any], batch: str) -> list[int | str | None]:
        if "data" not in table:
            raise InputError(f"{self.spec.uri}: {batch}: no 'data' in it; it has {', '.join(map(str, table))}")
        count = len(table["data"])
        if self.spec.unlabelled:
            return [0] * count
        self.table = self.spec.label_column or ("labels" if "labels" in table else "fine_labels")
        labels = table.get(self.table)
        if self.table not in TABLES or not isinstance(labels, (list, np.ndarray)):
            have = ", ".join(name for name in TABLES if name in table)
            raise InputError(f"{self.spec.uri}: {batch}: no labels {self.table!r}; --label-column may be {have}")
        if len(labels) != count or not all(isinstance(v, (int, np.integer)) for v in labels):
            raise InputError(
                f"{self.spec.uri}: {batch}: {len(labels)} labels for {count} pictures, or no whole numbers"
            )
        return [int(v) for v in labels]

    def _class_names(self) -> tuple[str, ...]:
        meta = next((name for name in ("batches.meta", "meta") if name in self._files), None)
        if meta is None:
            return ()
        names = self._load(meta, self._read(meta)).get(TABLES[self.table], ())
        where = f"{self.spec.uri}: {meta}"
        plain = (
            [_text(name) if isinstance(name, bytes) else name for name in names]
            if isinstance(names, (list, tuple))
            else names
        )
        return check_class_names(plain, where)

    def __len__(self) -> int:
        return self.first[-1]

    def record(self, index: int) -> Record:
        number = bisect.bisect_right(self.first, index) - 1
        batch, row = self.batches[number], index - self.first[number]
        if self._cached is None or self._cached[0] != batch:
            table = self._load(batch, self._read(batch))
            names = table.get("filenames")
            files = [_text(name) for name in names] if isinstance(names, (list, tuple)) else []
            self._cached = (batch, table["data"].reshape(-1, 3, SIDE, SIDE), files)
        _, pixels, files = self._cached
        name = f"{batch}/{files[row] if row < len(files) else f'{row:05d}.png'}"
        return Record(name, int(self.labels[index]), pixels[row])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
