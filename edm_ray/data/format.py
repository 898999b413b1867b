"""The Parquet convention of Hugging Face image data sets: ``image: struct<bytes, path>``, ``label: int64``.

Written and read with pyarrow alone; page checksums on, because Parquet accepts a flipped byte silently without them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from edm_ray.errors import IntegrityError

ROW_GROUP_BYTES = 8 << 20


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [C, H, W] with C = 1 or 3 -> PNG."""
    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(content: bytes, channels: int) -> np.ndarray:
    """PNG -> uint8 [C, H, W]; raises ValueError when the picture has other channels than the data set."""
    with Image.open(io.BytesIO(content)) as image:
        expected = "L" if channels == 1 else "RGB"
        if image.mode != expected:
            raise ValueError(f"picture of mode {image.mode}, the data set has mode {expected}")
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def schema(class_names: Sequence[str]) -> pa.Schema:
    """Arrow schema with the ``huggingface`` metadata that `datasets.load_dataset` reads."""
    label = {"names": list(class_names), "_type": "ClassLabel"} if class_names else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def write_shard(
    pictures: Sequence[bytes], names: Sequence[str], labels: Sequence[int], arrow_schema: pa.Schema
) -> bytes:
    """One Parquet file in memory; row groups of about ROW_GROUP_BYTES."""
    images = [{"bytes": content, "path": name} for content, name in zip(pictures, names, strict=True)]
    table = pa.table({"image": images, "label": list(labels)}, schema=arrow_schema)
    row_bytes = max(1, sum(map(len, pictures)) // max(1, len(pictures)))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=max(1, ROW_GROUP_BYTES // row_bytes), write_page_checksum=True, compression="none"
    )
    return bytes(sink.getvalue())


def read_shard(content: bytes, where: str, channels: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """One Parquet file -> (uint8 [N, C, H, W], int64 [N]). Raises IntegrityError naming the shard, row and reason."""
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"{where}: not a readable Parquet file: {error}") from error
    for column in ("image", "label"):
        if column not in table.column_names:
            raise IntegrityError(f"{where}: column {column!r} is missing; columns are {table.column_names}")
    pictures = table.column("image").combine_chunks().field("bytes").to_pylist()
    images = np.empty((len(pictures), channels, resolution, resolution), np.uint8)
    for row, picture in enumerate(pictures):
        try:
            pixels = decode_png(picture, channels)
        except Exception as error:
            raise IntegrityError(f"{where}: row {row}: {error}") from error
        if pixels.shape != images.shape[1:]:
            raise IntegrityError(f"{where}: row {row}: size {pixels.shape}, the data set has {images.shape[1:]}")
        images[row] = pixels
    return images, table.column("label").to_numpy().astype(np.int64)
