"""Parquet of pictures, Hugging Face style or any other: struct<bytes, path> or plain binary, under any column names.

One file, or a folder of them, of which one split is taken (`splits`). Folders ``label=cat/`` of Hive and Spark give
labels. Raw shards of this project are read too. Columns are detected when there is one candidate; else they must be
named.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edm_ray.data.format import LAYOUT, Pixels
from edm_ray.data.importers.files import is_folder, lfs_hint, list_tree, open_local, readable
from edm_ray.data.importers.source import (
    Record,
    RecordError,
    SourceSpec,
    check_class_names,
    fingerprint,
    label_table,
    shortened_list,
)
from edm_ray.data.importers.splits import choose_files, note_of_file
from edm_ray.errors import InputError, counted, shortened
from edm_ray.storage import uris
from edm_ray.storage.documents import load_json, shortened_error

LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "category", "target", "y")
BATCH_ROWS = 256
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100
"""Pictures in a row group that unpack to more than so many bytes *and* so many times theirs are refused: compressed
pictures do not shrink so."""


class Parquet:
    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        self.names, self.notes = _files(spec)
        self.files = [uris.join(spec.uri, name) if name else spec.uri for name in self.names]
        self._open: tuple[int, IO[bytes], pq.ParquetFile] | None = None
        self._batch: tuple[int, int, pa.RecordBatch] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        schema = self._file(0).schema_arrow
        self.image = _image_column(schema, spec, self.files[0])
        self.raw_shape = _raw_shape(schema.field(self.image), self.files[0])
        features = {} if spec.unlabelled else _features(schema, self.files[0])
        self.key = _folder_labels(self.names, spec, schema)
        self.label = None if spec.unlabelled or self.key else _label_column(schema, spec, features, self.files[0])
        if self.label is None and self.key is None and not spec.unlabelled:
            self.notes += (f"no labels among the columns {shortened_list(schema.names)}: no classes",)
        self.groups: list[tuple[int, int]] = []
        self.first = [0]
        self.first_of_file: list[int] = []
        values, footers = self._list()
        names = _class_names(schema, features, self.label, self.image, self.files[0])
        self.class_names: tuple[str, ...] = ()
        self.labels, classes = label_table(values, spec.uri, names if self.label else ())
        if self.label is not None or self.key is not None:
            self.class_names = classes
        self.fingerprint = fingerprint("parquet", footers, self.image, self.label or self.key, self.labels.tobytes())

    def _list(self) -> tuple[list[int | str | None], list[tuple[str, int, list[int]]]]:
        """Row groups of every file; labels of every row, and what the fingerprint is of."""
        values: list[int | str | None] = []
        footers = []
        for number, path in enumerate(self.files):
            file = self._file(number)
            if missing := [c for c in (self.image, self.label) if c is not None and c not in file.schema_arrow.names]:
                raise InputError(f"{path}: column {missing[0]!r} is missing; {self.files[0]} has it")
            self.first_of_file.append(self.first[-1])
            _refuse_bombs(file.metadata, self.image, path)
            for group in range(file.metadata.num_row_groups):
                self.groups.append((number, group))
                self.first.append(self.first[-1] + file.metadata.row_group(group).num_rows)
            values += self._labels(number, file)
            footers.append((path.rsplit("/", 1)[-1], file.metadata.num_rows, _sizes(file.metadata)))
        return values, footers

    def _file(self, number: int) -> pq.ParquetFile:
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
            self._batch = None
            path = self.files[number]
            handle = open_local(path)
            try:
                file = pq.ParquetFile(handle, page_checksum_verification=True, pre_buffer=False)
            except (pa.ArrowException, OSError) as error:
                reason = shortened_error(error)
                raise InputError(f"{path}: not a readable Parquet file: {reason}{lfs_hint(path)}") from error
            self._open = (number, handle, file)
        return self._open[2]

    def _labels(self, number: int, file: pq.ParquetFile) -> list[int | str | None]:
        if self.key is not None:
            return [_hive_value(_hive(self.names[number])[self.key])] * file.metadata.num_rows
        if self.label is None:
            return [0] * file.metadata.num_rows
        path = self.files[number]
        try:
            column = file.read(columns=[self.label], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: column {self.label!r} is damaged: {shortened_error(error)}") from error
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not (pa.types.is_integer(kind) or _is_text(kind)):
            raise InputError(
                f"{path}: column {self.label!r} holds {kind}; whole numbers or text are needed: cast it, give another "
                "--label-column, or --unlabelled"
            )
        values: list[int | str | None] = column.to_pylist()
        return values

    def __len__(self) -> int:
        return self.first[-1]

    def record(self, index: int) -> Record:
        group = bisect.bisect_right(self.first, index) - 1
        number, local = self.groups[group][0], index - self.first[group]
        file = readable(self.names[number] or self.files[number].rsplit("/", 1)[-1])
        place = f"{file} row {index - self.first_of_file[number]}"
        value = self._value(group, local, place)
        name = place
        if isinstance(value, dict):
            if value.get("bytes") is None:
                reason = "the picture is null"
                if value.get("path"):
                    reason = f"holds only the path {shortened(value['path'])}, which is not followed"
                raise RecordError(f"{place}: {reason}")
            name = f"{place} ({value['path']})" if value.get("path") else place
            value = value["bytes"]
        if value is None:
            raise RecordError(f"{place}: the picture is null")
        picture: bytes | Pixels = value
        if self.raw_shape is not None:
            picture = np.frombuffer(value, np.uint8).reshape(self.raw_shape)
        return Record(name, int(self.labels[index]), picture)

    def _value(self, group: int, local: int, place: str) -> Any:
        """One cell of the image column. Neighbours come from the same batch; memory holds BATCH_ROWS pictures."""
        number, in_file = self.groups[group]
        file = self._file(number)
        try:
            if self._batch is None or self._batch[0] != group or local < self._batch[1]:
                self._batches = file.iter_batches(
                    BATCH_ROWS, row_groups=[in_file], columns=[self.image], use_threads=False
                )
                self._batch = (group, 0, next(self._batches))
            while local >= self._batch[1] + self._batch[2].num_rows:
                self._batch = (group, self._batch[1] + self._batch[2].num_rows, next(self._batches))
        except (pa.ArrowException, OSError) as error:
            self._batch = None
            raise InputError(f"{self.files[number]}: {place}: damaged: {shortened_error(error)}") from error
        try:
            return self._batch[2].column(0)[local - self._batch[1]].as_py()
        except UnicodeDecodeError as error:
            raise RecordError(f"{place}: its path is not UTF-8; the file is damaged") from error


def _files(spec: SourceSpec) -> tuple[list[str], tuple[str, ...]]:
    """The split's files as relative paths ("": the source is the one file), and notes."""
    if not is_folder(spec.uri):
        return [""], note_of_file(spec.uri, spec.split)
    names = [name for name in list_tree(spec.uri) if name.lower().endswith(".parquet")]
    # Spark, Dask and Hive keep what is no data under names with "_": unfinished writes, statistics.
    unfinished = [name for name in names if any(part.startswith("_") for part in name.split("/"))]
    names = [name for name in names if name not in set(unfinished)]
    notes: tuple[str, ...] = ()
    if unfinished:
        notes = (
            f"ignored {counted(len(unfinished), 'file')} below names with _ (the first: {readable(unfinished[0])})",
        )
    if not names:
        raise InputError(f"{spec.uri}: no .parquet files in it")
    chosen = choose_files(names, spec.split, spec.uri)
    return list(chosen.names), (*notes, *chosen.notes)


def _hive(path: str) -> dict[str, str]:
    """``label=cat/part-0.parquet`` -> {"label": "cat"}, as Hive and Spark write values into folder names."""
    parts = (part.partition("=") for part in path.split("/")[:-1] if "=" in part)
    return {key: unquote(value) for key, _, value in parts}


def _folder_labels(files: Sequence[str], spec: SourceSpec, schema: pa.Schema) -> str | None:
    """The key among the folder names that holds the labels, where no column does."""
    keys = _hive(files[0])
    asked = spec.label_column
    if spec.unlabelled or (asked is not None and (asked in schema.names or asked not in keys)):
        return None
    found = [asked] if asked is not None else [key for key in keys if key.lower() in LABEL_NAMES]
    if len(found) > 1:
        raise InputError(f"{spec.uri}: several folder names may hold labels ({', '.join(found)}); give --label-column")
    if found and (without := [name for name in files if found[0] not in _hive(name)]):
        raise InputError(f"{spec.uri}: {readable(without[0])} lies in no folder {found[0]}=...")
    return found[0] if found else None


def _hive_value(text: str) -> int | str | None:
    if text == "__HIVE_DEFAULT_PARTITION__":
        return None
    return int(text) if re.fullmatch(r"0|-?[1-9]\d{0,17}", text) else text


def _refuse_bombs(metadata: pq.FileMetaData, image: str, path: str) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        columns = [column for column in columns if column.path_in_schema.split(".")[0] == image]
        packed = sum(column.total_compressed_size for column in columns)
        unpacked = sum(column.total_uncompressed_size for column in columns)
        if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
            raise InputError(
                f"{path}: column {image!r} of row group {number} is {packed:,} bytes and unpacks to {unpacked:,}: "
                "refused as a decompression bomb; rewrite it with smaller row groups if it is meant"
            )


def _is_image(field: pa.Field, where: str) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type))
    return _is_binary(kind) or _raw_shape(field, where) is not None


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _note(field: pa.Field, where: str) -> dict[str, Any]:
    """What our raw encoding says of its column."""
    text = (field.metadata or {}).get(LAYOUT.encode())
    note = load_json(text, f"{where}: {LAYOUT} metadata of column {field.name!r}") if text else {}
    return note if isinstance(note, dict) else {}


def _raw_shape(field: pa.Field, where: str) -> tuple[int, ...] | None:
    if not pa.types.is_fixed_size_binary(field.type) or not (shape := _note(field, where).get("shape")):
        return None
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and 0 < n < 1 << 16 for n in shape):
        return None
    return tuple(shape) if math.prod(shape) == field.type.byte_width else None


def _require_once(schema: pa.Schema, name: str, where: str) -> None:
    if (count := schema.names.count(name)) > 1:
        raise InputError(f"{where}: {count} columns are named {name!r}: rename them, and give the one that is meant")


def _image_column(schema: pa.Schema, spec: SourceSpec, where: str) -> str:
    if (asked := spec.image_column) is not None:
        if asked not in schema.names:
            raise InputError(f"{where}: --image-column {asked}: its columns are {', '.join(schema.names)}")
        _require_once(schema, asked, where)
        if not _is_image(schema.field(asked), where):
            raise InputError(
                f"{where}: column {asked!r} holds {_kind(schema.field(asked))}, not encoded pictures: files of "
                "png, jpg ... as binary, or struct<bytes, path>, are read"
            )
        return asked
    found = [field.name for field in schema if _is_image(field, where)]
    if found:
        _require_once(schema, found[0], where)
    if len(found) == 1:
        return str(found[0])
    kinds = shortened_list([f"{field.name}: {_kind(field)}" for field in schema])
    if not found:
        raise InputError(
            f"{where}: no column holds pictures; encoded ones as binary or struct<bytes, path> are read. "
            f"Its columns are {kinds}"
        )
    raise InputError(
        f"{where}: several columns may hold pictures ({', '.join(found)}); give --image-column NAME. Its columns are "
        f"{kinds}"
    )


def _kind(field: pa.Field) -> str:
    text = str(field.type)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _features(schema: pa.Schema, where: str) -> dict[str, Any]:
    """Columns as the ``huggingface`` metadata describes them; empty without it. Raises InputError when it is damaged:
    the names of the classes are in it."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text:
        return {}
    try:
        found = load_json(text, f"{where}: huggingface metadata")
    except InputError as error:
        raise InputError(
            f"{error}; write the file again without it, or give --unlabelled to leave labels out"
        ) from error
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _label_column(schema: pa.Schema, spec: SourceSpec, features: dict[str, Any], where: str) -> str | None:
    if (asked := spec.label_column) is not None:
        if asked not in schema.names:
            raise InputError(f"{where}: --label-column {asked}: its columns are {', '.join(schema.names)}")
        _require_once(schema, asked, where)
        return asked
    said = [name for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
    found = [name for name in schema.names if name in said] or [n for n in schema.names if n.lower() in LABEL_NAMES]
    if found:
        _require_once(schema, found[0], where)
    if len(found) > 1:
        raise InputError(f"{where}: several columns may hold labels ({', '.join(found)}); give --label-column NAME")
    return str(found[0]) if found else None


def _class_names(
    schema: pa.Schema, features: dict[str, Any], label: str | None, image: str, where: str
) -> tuple[str, ...]:
    feature = features.get(label) if label is not None else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return check_class_names(names or _note(schema.field(image), where).get("class_names") or (), where)


def _sizes(metadata: pq.FileMetaData) -> list[int]:
    return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
