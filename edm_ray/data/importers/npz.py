"""NumPy archives: arrays ``images``/``labels``, ``x``/``y``, ``x_train``/``y_train`` or ``arr_0``/``arr_1``.

Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]. Arrays are unpacked to a temporary file and read picture by
picture, so memory does not hold them. Arrays of objects are refused.
"""

from __future__ import annotations

import errno
import math
import zipfile
from typing import IO, Any

import numpy as np

from edm_ray.data.importers.files import lfs_hint, open_local, to_temporary
from edm_ray.data.importers.source import Record, SourceSpec, check_names, fingerprint, label_table
from edm_ray.data.importers.splits import note_of_file
from edm_ray.data.importers.zipped import DAMAGED
from edm_ray.errors import InputError
from edm_ray.storage.documents import shortened_error

IMAGES = ("images", "image", "x", "x_{split}", "{split}_images", "data", "arr_0")
LABELS = ("labels", "label", "y", "y_{split}", "{split}_labels", "arr_1")


class _Rows:
    """An array in a file, of which one row at a time is read (a memory map would fill memory with what it has read)."""

    def __init__(self, handle: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.handle, self.start, self.shape, self.dtype, self.ndim = handle, handle.tell(), shape, dtype, len(shape)
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if handle.seek(0, 2) != self.start + shape[0] * self.row_bytes:
            raise ValueError("the file is shorter or longer than its header says")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Any:
        self.handle.seek(self.start + index * self.row_bytes)
        return np.frombuffer(self.handle.read(self.row_bytes), self.dtype).reshape(self.shape[1:])

    def all(self) -> Any:
        self.handle.seek(self.start)
        return np.frombuffer(self.handle.read(), self.dtype).reshape(self.shape)


def _header(handle: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array of a .npy file, which is then read up to its first value. Raises InputError for
    objects, Fortran order and damaged files."""
    try:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(handle)
        if dtype.hasobject:
            raise InputError(f"{what} holds objects; numbers are needed")
        if fortran and len(shape) > 1:
            raise InputError(f"{what} is in Fortran order; save np.ascontiguousarray of it")
        if not shape:
            raise InputError(f"{what} is a single number")
        return shape, dtype
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{what}: not a readable array: {error}") from error


def array_rows(handle: IO[bytes], what: str) -> _Rows:
    shape, dtype = _header(handle, what)
    try:
        return _Rows(handle, shape, dtype)
    except (ValueError, OSError) as error:
        raise InputError(f"{what}: not a readable array: {error}") from error


class Npz:
    names: tuple[str, ...] = IMAGES
    """Usual names of the array of pictures, the likeliest first."""

    def __init__(self, spec: SourceSpec) -> None:
        self.where = spec.uri
        handle = open_local(spec.uri)
        try:
            self.archive = zipfile.ZipFile(handle)
        except DAMAGED as error:
            reason = shortened_error(error)
            raise InputError(f"{spec.uri}: not a readable .npz: {reason}{lfs_hint(spec.uri)}") from error
        infos = {i.filename.removesuffix(".npy"): i for i in self.archive.infolist() if i.filename.endswith(".npy")}
        check_names([info.filename for info in self.archive.infolist()], spec.uri)
        image_name = self._choose(infos, self.names, spec.image_column, spec.split, "--image-column")
        if image_name is None and {"mu", "sigma"} <= set(infos):
            raise InputError(
                f"{spec.uri}: holds a mean and a covariance, an FID reference and no pictures; make it a reference: "
                f"edm-ray import {spec.uri} OUT --extractor inception --weights WEIGHTS"
            )
        if image_name is None:
            raise InputError(f"{spec.uri}: which array holds pictures? It has {', '.join(infos)}; give --image-column")
        self.images = self._rows(infos[image_name])
        self.axes = self._layout(self.images, image_name)
        self.notes: tuple[str, ...] = note_of_file(spec.uri, spec.split)
        self.class_names: tuple[str, ...] = ()
        label_name = self._choose(infos, LABELS, spec.label_column, spec.split, "--label-column")
        values: list[int | str | None] = [0] * len(self.images)
        crc = 0
        if not spec.unlabelled and label_name is None:
            self.notes += (f"no labels among the arrays {', '.join(infos)}: no classes",)
        elif not spec.unlabelled and label_name is not None:
            labels = self._rows(infos[label_name]).all()
            if labels.size != len(self.images) or labels.dtype.kind not in "iu":
                raise InputError(
                    f"{spec.uri}: {label_name} is {labels.dtype} {labels.shape}; needed are "
                    f"{len(self.images):,} whole numbers: cast them, give another --label-column, or --unlabelled"
                )
            values, crc = labels.ravel().tolist(), infos[label_name].CRC
        self.labels, classes = label_table(values, spec.uri)
        if label_name is not None and not spec.unlabelled:
            self.class_names = classes
        self.image_name = image_name
        self.fingerprint = fingerprint("npz", image_name, self.images.shape, infos[image_name].CRC, label_name, crc)

    def _choose(
        self, infos: dict[str, Any], usual: tuple[str, ...], asked: str | None, split: str, flag: str
    ) -> str | None:
        if asked is not None:
            if asked not in infos:
                raise InputError(f"{self.where}: {flag} {asked}: it has {', '.join(infos)}")
            return asked
        lower = {name.lower(): name for name in infos}
        found = [lower[name] for u in usual if (name := u.format(split=split)) in lower]
        return found[0] if found else None

    def _rows(self, info: zipfile.ZipInfo) -> _Rows:
        """An array in its unpacked file."""
        what = f"{self.where}: {info.filename}"
        try:
            with self.archive.open(info) as member:  # looked at first, so that a bomb does not fill the disk
                shape, dtype = _header(member, what)
                if (told := member.tell() + math.prod(shape) * dtype.itemsize) != info.file_size:
                    raise InputError(f"{what}: {info.file_size:,} bytes unpacked, its header says {told:,}; refused")
            with self.archive.open(info) as member:
                unpacked = to_temporary(member, what)
        except InputError:
            raise
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise  # a disk's, not the archive's
            raise InputError(f"{what}: damaged: {shortened_error(error)}") from error
        return array_rows(unpacked, what)

    def _layout(self, images: Any, name: str) -> tuple[int, int, int] | None:
        """Axes of one picture in the order C, H, W; None without a channel axis."""
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise InputError(
                f"{self.where}: {name} is {images.dtype} {images.shape}; uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] "
                "is needed: scale values to 0..255 first"
            )
        if images.ndim == 3:
            return None
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first == last:
            raise InputError(f"{self.where}: {name} of shape {images.shape}: which axis is the channel (1 or 3)?")
        return (0, 1, 2) if first else (2, 0, 1)

    def __len__(self) -> int:
        return len(self.images)

    def record(self, index: int) -> Record:
        image = self.images[index]
        pixels = image[None] if self.axes is None else np.ascontiguousarray(image.transpose(self.axes))
        return Record(f"{self.image_name} row {index}", int(self.labels[index]), pixels)
