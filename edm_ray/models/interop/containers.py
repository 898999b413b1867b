"""Files that hold a network: a plain pickle, or torch's zip archive (a training state). Compressed ones are refused."""

from __future__ import annotations

import io
import itertools
import pickletools
import struct
import zipfile
import zlib
from typing import Any

from edm_ray.errors import InputError
from edm_ray.models.interop.inert import Storage, allowed_globals, storage_of
from edm_ray.models.interop.pickles import MAX_STEPS, Budget, read_pickle, shown

MAX_DIRECTORY_BYTES = 4 * 2**20
"""Size of a zip archive's list of files: 50 times that of a training state."""
MAX_OLD_STEPS = 100_000
ARRAYS = (
    "; a network holds no NumPy arrays: if it is a reference of FID, save its two as .npz, "
    "np.savez(OUT, mu=..., sigma=...), and import that with --extractor inception --weights WEIGHTS"
)
OLD_TORCH = 0x1950A86A20F9469CFC6C
"""The number with which torch.save began its files before it wrote zip archives."""
_OTHER = {
    b"\x1f\x8b": "gzip-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to",
    b"<": "a web page or XML, not the file that was meant",
}


def read_network_file(content: bytes, where: str) -> Any:
    """The object a network file describes, made of plain values and the records of `inert`.

    Raises InputError naming ``where`` and the reason: a global that is not allowed, damage, or another format.
    """
    budget = Budget(MAX_STEPS, copied_bytes=2 * len(content))
    try:
        if content[:4] == b"PK\x03\x04":
            return _read_archive(content, budget)
        if content[:1] != b"\x80" or content[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
            raise InputError(_what_it_is(content))
        stream = io.BytesIO(content)
        value = read_pickle(stream, allowed_globals(budget), budget)
        if value == OLD_TORCH:
            raise InputError(
                "a file of torch.save before torch 1.6; where you trust it, load it with torch and save it again: "
                "torch.save(torch.load(FILE, map_location='cpu'), OUT), or give the .pkl snapshot of that moment"
            )
        if rest := len(content) - stream.tell():
            raise InputError(f"{rest:,} bytes follow the end of the pickle")
        return value
    except InputError as error:
        arrays = "" if "multiarray._reconstruct" not in str(error) else ARRAYS
        raise InputError(f"{where}: {error}{arrays}") from None


def _what_it_is(content: bytes) -> str:
    for start, name in _OTHER.items():
        if content.startswith(start):
            return f"{name}: unpack or fetch the .pkl itself and give that"
    called = _old_pickle_names(content)
    if called is not None:
        named = f" that names the global {shown(called)}" if called else ""
        return f"a pickle of protocol 0 or 1{named}, refused: networks are of 2 to 5; nothing of the file was executed"
    return f"not a pickle of protocol 2 to 5 (it starts with {content[:4].hex() or 'nothing'})"


def _old_pickle_names(content: bytes) -> str | None:
    """The first global that a pickle without a protocol number names, "" for none; None for what is no pickle."""
    first = ""
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(io.BytesIO(content)), MAX_OLD_STEPS):
            if opcode.name in ("GLOBAL", "INST"):
                first = first or str(argument).replace(" ", ".")
            if opcode.name == "STOP":
                return first
    except (ValueError, IndexError, TypeError, struct.error, OverflowError, UnicodeError):
        pass
    return None


def _read_archive(content: bytes, budget: Budget) -> Any:
    """torch.save's archive: NAME/data.pkl with persistent ids, and one stored file NAME/data/KEY a storage."""
    if _directory_bytes(content) > MAX_DIRECTORY_BYTES:
        raise InputError(f"a zip archive whose list of files takes more than {MAX_DIRECTORY_BYTES:,} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, IndexError, struct.error, NotImplementedError, UnicodeError) as error:
        raise InputError(f"a damaged or truncated zip archive: {shown(str(error))}") from None
    mains = [name for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(mains) != 1:
        raise InputError("a zip archive that torch.save did not write (no data.pkl); a network file is expected")
    folder = mains[0].removesuffix("data.pkl")
    if sum(info.file_size for info in infos.values()) > len(content):
        raise InputError("the archive's files are larger than the archive: a decompression bomb")
    order = f"{folder}byteorder"
    if order in infos and bytes(_member(content, infos[order])) != b"little":
        raise InputError("the tensors are not little-endian")
    storages: dict[str, Storage] = {}

    def find(key: str) -> memoryview:
        name = f"{folder}data/{key}"
        if name not in infos:
            raise InputError(f"storage {shown(key)} is not in the archive")
        return _member(content, infos[name])

    def resolve(identity: object) -> Storage:
        key = identity[2] if isinstance(identity, tuple) and len(identity) > 2 else None
        if not isinstance(key, str) or key not in storages:
            storages[str(key)] = storage_of(identity, find)
        return storages[str(key)]

    stream = io.BytesIO(_member(content, infos[mains[0]]))
    return read_pickle(stream, allowed_globals(budget), budget, resolve)


def _member(content: bytes, info: zipfile.ZipInfo) -> memoryview:
    """One stored file of an archive: a view of its bytes, the checksum compared."""
    name, start = shown(info.filename), info.header_offset
    header = content[start : start + 30]
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise InputError(f"{name} is compressed or encrypted; torch.save does neither, so it is refused")
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise InputError(f"{name} has no header: damaged archive")
    first = start + 30 + sum(struct.unpack("<HH", header[26:30]))
    if info.file_size != info.compress_size or first + info.file_size > len(content):
        raise InputError(f"{name} is truncated")
    view = memoryview(content)[first : first + info.file_size]
    if zlib.crc32(view) != info.CRC:
        raise InputError(f"{name} is damaged: its checksum differs")
    return view


def _directory_bytes(content: bytes) -> int:
    """The largest size that an end-of-archive record (plain or zip64) near the end states for the list of files."""
    tail = content[-(22 + 65535 + 20 + 56) :]
    sizes = [0]
    for signature, offset, code in ((b"PK\x05\x06", 12, "<I"), (b"PK\x06\x06", 40, "<Q")):
        at = tail.rfind(signature)
        while at >= 0:
            field = tail[at + offset : at + offset + struct.calcsize(code)]
            if len(field) == struct.calcsize(code) and (size := struct.unpack(code, field)[0]) != 0xFFFFFFFF:
                sizes.append(size)
            at = tail.rfind(signature, 0, at)
    return max(sizes)
