"""FID references of the official code: an .npz file with ``mu`` and ``sigma`` (Karras et al. 2022, appendix F.1)."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib

import numpy as np

from edm_ray.errors import InputError
from edm_ray.evaluation.moments import Array
from edm_ray.models.interop.pickles import shown

MAX_BYTES = 256 * 2**20
"""2,048 features take 34 MB."""


def read_fid_npz(content: bytes, where: str) -> tuple[Array, Array]:
    """Mean [d] and covariance [d, d], float64, from the bytes of an .npz file. Object arrays are never read.

    Raises InputError for other files, missing arrays, and numbers that are no mean and covariance.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise InputError(f"{where}: its arrays take more than {MAX_BYTES:,} bytes: not an FID reference")
            for name in ("mu", "sigma"):
                if f"{name}.npy" not in archive.namelist():
                    held = ", ".join(shown(item) for item in archive.namelist()[:8])
                    raise InputError(f"{where}: array {name!r} is missing, it holds: {held or 'nothing'}")
                with archive.open(f"{name}.npy") as stream:
                    arrays[name] = _array(stream.read(MAX_BYTES))
    except InputError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        ValueError,
        OSError,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        reason = shown(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise InputError(f"{where}: not an .npz file with mu and sigma: {reason}") from None
    mean, covariance = arrays["mu"], arrays["sigma"]
    for name, array in arrays.items():
        if not bool(np.isfinite(array).all()):
            raise InputError(f"{where}: {name} holds numbers that are not finite")
    if mean.ndim != 1 or len(mean) < 1 or covariance.shape != (len(mean), len(mean)):
        raise InputError(f"{where}: mu {mean.shape} and sigma {covariance.shape} are not [d] and [d, d]")
    covariance = covariance.astype(np.float64)
    size = max(float(np.abs(covariance).max()), 1e-300)
    if float(np.abs(covariance - covariance.T).max()) > 1e-6 * size or float(covariance.diagonal().min()) < 0:
        raise InputError(f"{where}: sigma is not symmetric with a diagonal of 0 or more: not a covariance")
    return mean.astype(np.float64), (covariance + covariance.T) / 2


def _array(content: bytes) -> np.ndarray:
    """An .npy file's array. The size its header claims is compared with the bytes: NumPy allocates on claims."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream, max_header_size=1000)
    if dtype.kind != "f":
        raise ValueError(f"an array of {dtype}, finite floating-point numbers are expected")
    data = memoryview(content)[stream.tell() :]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array said to have shape {shape}, {len(data):,} bytes are there")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
