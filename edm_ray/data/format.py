"""A shard: one Parquet file of pictures and labels, in one of two encodings.

``png`` (default): the convention of Hugging Face image data sets, ``image: struct<bytes, path>``, ``label: int64``.
``raw``: ``image: fixed_size_binary[C*H*W]`` (uint8, CHW), ``label: int64``, ``path: string``, for throughput.
Latents are raw too, of float16 or float32; here they are bytes: a row is uint8 [C, H, W * bytes of a number].

Written and read with pyarrow alone; page checksums on, because Parquet accepts a flipped byte silently without them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from edm_ray.errors import IntegrityError

ENCODINGS = ("png", "raw")
ROW_GROUP_BYTES = 8 << 20
LAYOUT = "edm_ray"
"""Key of the raw column's metadata: shape, dtype and layout as JSON."""

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def encode_png(pixels: Pixels) -> bytes:
    """uint8 [C, H, W] with C = 1 or 3 -> PNG."""
    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(content: bytes, channels: int, resolution: int | None = None) -> Pixels:
    """PNG -> uint8 [C, H, W]; raises ValueError when the picture has other channels or another size than the data set.

    Size and mode are compared before anything is decompressed, so a decompression bomb costs nothing.
    """
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        expected = "L" if channels == 1 else "RGB"
        if image.mode != expected:
            raise ValueError(f"picture of mode {image.mode}, the data set has mode {expected}")
        if resolution is not None and image.size != (resolution, resolution):
            raise ValueError(f"size {image.width}x{image.height}, the data set has {resolution}x{resolution}")
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def encode(pixels: Pixels, encoding: str) -> bytes:
    """One picture as it lies in the image column."""
    assert encoding in ENCODINGS
    return encode_png(pixels) if encoding == "png" else np.ascontiguousarray(pixels).tobytes()


def schema(
    class_names: Sequence[str],
    encoding: str = "png",
    shape: tuple[int, int, int] | None = None,
    dtype: str = "uint8",
) -> pa.Schema:
    """Arrow schema of a shard. png: with the ``huggingface`` metadata that `datasets.load_dataset` reads. raw: shape
    (C, H, W) is needed and noted in the column's metadata (`datasets` knows no fixed_size_binary, so no key for it)."""
    if encoding == "raw":
        assert shape is not None
        note = json.dumps({"shape": list(shape), "dtype": dtype, "layout": "CHW", "class_names": list(class_names)})
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        image = pa.field("image", pa.binary(size), metadata={LAYOUT: note})
        return pa.schema([image, ("label", pa.int64()), ("path", pa.string())])
    label = {"names": list(class_names), "_type": "ClassLabel"} if class_names else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [("image", struct), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def write_shard(
    pictures: Sequence[bytes], names: Sequence[str], labels: Sequence[int], arrow_schema: pa.Schema
) -> bytes:
    """One Parquet file in memory, in the encoding of ``arrow_schema``; row groups of about ROW_GROUP_BYTES."""
    columns: dict[str, object] = {"label": list(labels)}
    if pa.types.is_struct(arrow_schema.field("image").type):
        columns["image"] = [{"bytes": content, "path": name} for content, name in zip(pictures, names, strict=True)]
    else:
        columns |= {"image": list(pictures), "path": list(names)}
    table = pa.table(columns, schema=arrow_schema)
    row_bytes = max(1, sum(map(len, pictures)) // max(1, len(pictures)))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, ROW_GROUP_BYTES // row_bytes),
        write_page_checksum=True,
        compression="none",
        # Pictures do not repeat: a dictionary or bounds of them only cost bytes.
        use_dictionary=["label"],
        write_statistics=["label"],
    )
    return bytes(sink.getvalue())


def row_groups(content: bytes) -> list[dict[str, int]]:
    """Where the row groups of a shard lie: ``rows``, ``offset`` and ``bytes`` of each, for range requests."""
    metadata = pq.read_metadata(pa.BufferReader(content))
    groups = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = [group.column(i) for i in range(group.num_columns)]
        offset = min(c.dictionary_page_offset or c.data_page_offset for c in columns)
        groups.append(
            {"rows": group.num_rows, "offset": offset, "bytes": sum(c.total_compressed_size for c in columns)}
        )
    return groups


def read_shard(content: bytes, where: str, channels: int, resolution: int, itemsize: int = 1) -> tuple[Pixels, Labels]:
    """One Parquet file in either encoding -> (uint8 [N, C, H, W * itemsize], int64 [N]).

    Page checksums are verified. In this thread alone: shards are read several at a time already, and a process that
    ends while Arrow's own threads (those of `pq.read_table`) wind down is aborted now and then.
    Raises IntegrityError naming the shard, the row where there is one, and the reason.
    The arrays may be read-only views of the file's memory.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{where}: not a readable Parquet file: {error}") from error
    return decode_table(table, where, channels, resolution, itemsize=itemsize)


def decode_table(
    table: pa.Table, where: str, channels: int, resolution: int, first_row: int = 0, itemsize: int = 1
) -> tuple[Pixels, Labels]:
    """Rows of a shard, read from Parquet -> (uint8 [N, C, H, W * itemsize], int64 [N]); ``first_row`` counts in
    messages. itemsize: bytes of a number, above 1 for latents."""
    for column in ("image", "label"):
        if column not in table.column_names:
            raise IntegrityError(f"{where}: column {column!r} is missing; columns are {table.column_names}")
    label = table.column("label")
    if not pa.types.is_integer(label.type):
        raise IntegrityError(f"{where}: column 'label' holds {label.type}, not whole numbers")
    if label.null_count:
        row = first_row + int(np.argmax(label.is_null().to_numpy()))
        raise IntegrityError(f"{where}: row {row}: the label is null")
    image = table.column("image").combine_chunks()
    shape = (channels, resolution, resolution * itemsize)
    if pa.types.is_fixed_size_binary(image.type):
        images = _raw_images(image, where, shape, first_row)
    elif itemsize == 1 and pa.types.is_struct(image.type) and image.type.get_field_index("bytes") >= 0:
        images = _png_images(image.field("bytes").to_pylist(), where, shape, first_row)
    else:
        raise IntegrityError(f"{where}: column 'image' holds {image.type}, neither struct<bytes, path> nor raw pixels")
    return images, label.to_numpy().astype(np.int64)


def _png_images(pictures: list[bytes | None], where: str, shape: tuple[int, int, int], first_row: int) -> Pixels:
    images = np.empty((len(pictures), *shape), np.uint8)
    for row, picture in enumerate(pictures, first_row):
        try:
            if not picture:
                raise ValueError("the picture is null" if picture is None else "the picture is empty")
            images[row - first_row] = decode_png(picture, shape[0], shape[1])
        except Exception as error:  # Pillow raises many kinds for damaged bytes
            raise IntegrityError(f"{where}: row {row}: {error}") from error
    return images


def _raw_images(image: pa.Array, where: str, shape: tuple[int, int, int], first_row: int) -> Pixels:
    note = int(np.prod(shape))
    if image.type.byte_width != note:
        raise IntegrityError(f"{where}: {image.type.byte_width} bytes a picture, the data set's {shape} need {note}")
    if image.null_count:
        row = first_row + int(np.argmax(image.is_null().to_numpy(zero_copy_only=False)))
        raise IntegrityError(f"{where}: row {row}: the picture is null")
    if len(image) == 0:
        return np.empty((0, *shape), np.uint8)
    pixels = np.frombuffer(image.buffers()[1], np.uint8)[image.offset * note :][: len(image) * note]
    return pixels.reshape(-1, *shape)
