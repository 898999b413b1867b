"""A folder of pictures: class by first-level subfolder, or no classes when the pictures lie directly in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edm_ray.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def load_folder(folder: str, resolution: int | None) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Pictures of a folder, in sorted order of their paths.

    resolution: centre-crop to a square and resize (Lanczos) to it; None = take the pictures as they are.
    Returns uint8 [N, C, R, R], int64 labels [N], class names and the pictures' paths. Greyscale and RGB are kept
    (all pictures alike); other modes, mixed sizes and unreadable files raise InputError naming the file.
    """
    root = Path(folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: no pictures ({', '.join(sorted(SUFFIXES))}) in it or its subfolders")
    relative = [path.relative_to(root) for path in paths]
    tops = sorted({path.parts[0] for path in relative if len(path.parts) > 1})
    loose = [path for path in relative if len(path.parts) == 1]
    if tops and loose:
        raise InputError(
            f"{folder}: {loose[0]} lies beside class folders ({', '.join(tops[:3])}...); "
            "put every picture into a class folder, or none"
        )
    pictures = [_load(path, resolution) for path in paths]
    first = pictures[0].shape
    for path, picture in zip(paths, pictures):
        if picture.shape != first:
            raise InputError(
                f"{path}: {picture.shape} (channels, height, width), {paths[0]} has {first}; give --resolution R to "
                "crop and resize, and convert pictures to one mode"
            )
    if first[1] != first[2]:
        raise InputError(f"{paths[0]}: {first[2]}x{first[1]} is not square; give --resolution R to crop and resize")
    labels = np.array([tops.index(path.parts[0]) if tops else 0 for path in relative], np.int64)
    return np.stack(pictures), labels, tops, [path.as_posix() for path in relative]


def _load(path: Path, resolution: int | None) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            opened.load()
            image: Image.Image = opened
            if image.mode not in ("L", "RGB"):
                raise InputError(f"{path}: picture of mode {image.mode}; convert it to greyscale (L) or RGB first")
            if resolution is not None:
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                square = image.crop((left, top, left + side, top + side))
                image = square.resize((resolution, resolution), Image.Resampling.LANCZOS)
            pixels = np.asarray(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
