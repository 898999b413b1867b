"""Sources made for tests, in the formats people have them in."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from edm_ray.data.importers.detect import detect_kind, open_source
from edm_ray.data.importers.pictures import PictureOptions, to_pixels
from edm_ray.data.importers.source import Source, SourceSpec
from edm_ray.data.plan import Plan, PlanOptions, PrepareShards, make_plan, prepare
from edm_ray.execution.local import Local


def pixels_of(count: int, channels: int = 3, side: int = 32, seed: int = 0) -> np.ndarray:
    """uint8 [N, C, R, R], all different."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), np.uint8)


def picture(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.save(buffer, format=format)
    return buffer.getvalue()


def blank(size: tuple[int, int] = (4, 4), mode: str = "RGB", format: str = "PNG", **save: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=format, **save)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_folder(root: Path, images: np.ndarray, classes: str = "ab") -> Path:
    for i, image in enumerate(images):
        put(root / classes[i % len(classes)] / f"{i:03d}.png", picture(image))
    return root


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def cifar_batch(images: np.ndarray, labels: list[int], table: str = "labels") -> bytes:
    """A pickle as published: protocol 2, keys and file names as bytes, data uint8 [N, 3072]."""
    names = [f"{i}.png".encode() for i in range(len(images))]
    value = {
        b"batch_label": b"training batch",
        table.encode(): labels,
        b"data": images.reshape(len(images), -1),
        b"filenames": names,
    }
    return pickle.dumps(value, protocol=2)


def make_cifar(path: Path, images: np.ndarray, labels: list[int]) -> Path:
    half = len(images) // 2
    meta = {b"label_names": [b"plane", b"car", b"bird"], b"num_cases_per_batch": 3}
    return make_tar(
        path,
        {
            "cifar-10-batches-py/data_batch_1": cifar_batch(images[:half], labels[:half]),
            "cifar-10-batches-py/data_batch_2": cifar_batch(images[half:], labels[half:]),
            "cifar-10-batches-py/test_batch": cifar_batch(images[:1], labels[:1]),
            "cifar-10-batches-py/batches.meta": pickle.dumps(meta, protocol=2),
        },
    )


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def make_idx(root: Path, images: np.ndarray, labels: list[int], packed: bool = True) -> Path:
    squeeze = gzip.compress if packed else bytes
    end = ".gz" if packed else ""
    put(root / f"train-images-idx3-ubyte{end}", squeeze(idx(images[:, 0])))
    put(root / f"train-labels-idx1-ubyte{end}", squeeze(idx(np.array(labels, np.uint8))))
    return root


def make_parquet(path: Path, columns: dict[str, object], names: list[str] | None = None, **options: object) -> Path:
    table = pa.table(columns)
    if names is not None:
        label = {"_type": "ClassLabel", "names": names}
        features = {"info": {"features": {"img": {"_type": "Image"}, "fine_label": label}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, **options)
    return path


def structs(contents: list[bytes | None]) -> pa.Array:
    rows = [None if c is None else {"bytes": c, "path": f"{i}.png"} for i, c in enumerate(contents)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def open_at(path: Path | str, **fields: object) -> Source:
    kind = fields.pop("kind", None) or detect_kind(str(path))
    return open_source(SourceSpec(uri=str(path), kind=kind, **fields))


def contents(source: Source, options: PictureOptions | None = None) -> tuple[np.ndarray, list[int]]:
    """All pixels and labels of a source."""
    records = [source.record(i) for i in range(len(source))]
    return np.stack([to_pixels(r, options or PictureOptions()) for r in records]), [r.label for r in records]


FOLDER_IMAGES = pixels_of(20, 3, 8)


def plan_of(folder: Path, **options: object) -> Plan:
    return make_plan(SourceSpec(uri=str(folder), kind="folder"), PictureOptions(), PlanOptions(**options))[0]


def files_in(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def prepare_here(dest, plan):
    return prepare(str(dest), plan, Local())


def prepare_shard(dest, plan, index):
    """One shard, unless it is there; its entry."""
    recipe = PrepareShards(dest=str(dest), plan=plan)
    shard = recipe.shards()[index]
    if not recipe.is_stored(shard):
        recipe.make((shard,))
    return recipe.entry(shard)
