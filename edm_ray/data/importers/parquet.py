"""Parquet of pictures, Hugging Face style or any other: struct<bytes, path> or plain binary, under any column names.

One file, or a folder of them (``train-*.parquet`` are the split "train"). Raw shards of this project are read
too. Columns are detected when there is one candidate; else they must be named.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edm_ray.data.format import LAYOUT, Pixels
from edm_ray.data.importers.files import is_folder, list_tree, open_local
from edm_ray.data.importers.source import Record, RecordError, SourceSpec, fingerprint, label_table
from edm_ray.errors import InputError
from edm_ray.storage import uris

LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "category", "target", "y")
BATCH_ROWS = 256
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100
"""Pictures in a row group that unpack to more than so many bytes *and* so many times theirs are refused: compressed
pictures do not shrink so."""


class Parquet:
    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        self.files = _files(spec)
        self._open: tuple[int, IO[bytes], pq.ParquetFile] | None = None
        self._batch: tuple[int, int, pa.RecordBatch] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self.notes: tuple[str, ...] = ()
        schema = self._file(0).schema_arrow
        self.image = _image_column(schema, spec, self.files[0])
        self.raw_shape = _raw_shape(schema.field(self.image))
        features = _features(schema)
        self.label = None if spec.unlabelled else _label_column(schema, spec, features, self.files[0])
        if self.label is None and not spec.unlabelled:
            self.notes = (f"no labels among the columns {', '.join(schema.names)}: no classes",)
        self.groups: list[tuple[int, int]] = []
        self.first = [0]
        self.first_of_file: list[int] = []
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
        names = _class_names(schema, features, self.label, self.image)
        self.class_names: tuple[str, ...] = ()
        self.labels, classes = label_table(values, spec.uri, names if self.label else ())
        if self.label is not None:
            self.class_names = classes
        self.fingerprint = fingerprint("parquet", footers, self.image, self.label, self.labels.tobytes())

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
                raise InputError(f"{path}: not a readable Parquet file: {error}") from error
            self._open = (number, handle, file)
        return self._open[2]

    def _labels(self, number: int, file: pq.ParquetFile) -> list[int | str | None]:
        if self.label is None:
            return [0] * file.metadata.num_rows
        path = self.files[number]
        try:
            column = file.read(columns=[self.label], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: column {self.label!r} is damaged: {error}") from error
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type) or _is_large(column.type)):
            raise InputError(f"{path}: column {self.label!r} holds {column.type}; whole numbers or text are needed")
        values: list[int | str | None] = column.to_pylist()
        return values

    def __len__(self) -> int:
        return self.first[-1]

    def record(self, index: int) -> Record:
        group = bisect.bisect_right(self.first, index) - 1
        number, local = self.groups[group][0], index - self.first[group]
        place = f"{self.files[number].rsplit('/', 1)[-1]} row {index - self.first_of_file[number]}"
        value = self._value(group, local, place)
        name = place
        if isinstance(value, dict):
            if value.get("bytes") is None:
                reason = "the picture is null"
                if value.get("path"):
                    reason = f"holds only the path {value['path']!r}, which is not followed"
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
            raise InputError(f"{self.files[number]}: {place}: damaged: {error}") from error
        return self._batch[2].column(0)[local - self._batch[1]].as_py()


def _files(spec: SourceSpec) -> list[str]:
    if not is_folder(spec.uri):
        return [spec.uri]
    names = [name for name in list_tree(spec.uri) if name.endswith(".parquet")]
    if not names:
        raise InputError(f"{spec.uri}: no .parquet files in it")
    splits = {name: name.rsplit("/", 1)[-1].split("-")[0].removesuffix(".parquet") for name in names}
    if len(set(splits.values())) > 1:
        names = [name for name in names if splits[name] == spec.split]
        if not names:
            have = ", ".join(sorted(set(splits.values())))
            raise InputError(f"{spec.uri}: no split {spec.split!r}; --split may be {have}")
    return [uris.join(spec.uri, name) for name in names]


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


def _is_image(field: pa.Field) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type))
    return _is_binary(kind) or _raw_shape(field) is not None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_large(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(kind))


def _note(field: pa.Field) -> dict[str, Any]:
    """What our raw encoding says of its column."""
    text = (field.metadata or {}).get(LAYOUT.encode())
    note: dict[str, Any] = json.loads(text) if text else {}
    return note


def _raw_shape(field: pa.Field) -> tuple[int, ...] | None:
    if not pa.types.is_fixed_size_binary(field.type) or not (shape := _note(field).get("shape")):
        return None
    return tuple(shape) if int(np.prod(shape)) == field.type.byte_width else None


def _image_column(schema: pa.Schema, spec: SourceSpec, where: str) -> str:
    if (asked := spec.image_column) is not None:
        if asked not in schema.names:
            raise InputError(f"{where}: --image-column {asked}: its columns are {', '.join(schema.names)}")
        if not _is_image(schema.field(asked)):
            raise InputError(f"{where}: column {asked!r} holds {schema.field(asked).type}, not encoded pictures")
        return asked
    found = [field.name for field in schema if _is_image(field)]
    if len(found) != 1:
        kinds = ", ".join(f"{field.name}: {field.type}" for field in schema)
        what = f"several columns may hold pictures ({', '.join(found)})" if found else "no column holds pictures"
        raise InputError(f"{where}: {what}; give --image-column NAME. Its columns are {kinds}")
    return str(found[0])


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text).get("info", {}).get("features", {})
        return features if isinstance(features, dict) else {}
    except (ValueError, AttributeError):
        return {}


def _label_column(schema: pa.Schema, spec: SourceSpec, features: dict[str, Any], where: str) -> str | None:
    if (asked := spec.label_column) is not None:
        if asked not in schema.names:
            raise InputError(f"{where}: --label-column {asked}: its columns are {', '.join(schema.names)}")
        return asked
    said = [name for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
    found = [name for name in schema.names if name in said] or [n for n in schema.names if n.lower() in LABEL_NAMES]
    if len(found) > 1:
        raise InputError(f"{where}: several columns may hold labels ({', '.join(found)}); give --label-column NAME")
    return str(found[0]) if found else None


def _class_names(schema: pa.Schema, features: dict[str, Any], label: str | None, image: str) -> tuple[str, ...]:
    feature = features.get(label) if label is not None else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(names or _note(schema.field(image)).get("class_names", ()))


def _sizes(metadata: pq.FileMetaData) -> list[int]:
    return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
