"""Grids of images for people, with what made them in the PNG's text chunks."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edm_ray.storage import uris

GAP_LEVEL = 96


def image_grid(images: npt.NDArray[np.uint8], columns: int, scale: int = 1, gap: int = 0, lead: int = 0) -> Image.Image:
    """uint8 [N, C, H, W] -> one picture, row by row, pixels enlarged by a whole number, ``gap`` grey pixels between
    images; missing places are grey too. A white bar sets the first ``lead`` columns apart."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    high, wide = height * scale + gap, width * scale + gap
    bar = max(4, 2 * gap) if 0 < lead < columns else 0
    sheet = np.full((rows * high - gap, columns * wide - gap + bar, channels), GAP_LEVEL, np.uint8)
    if bar:
        sheet[:, lead * wide : lead * wide + bar - gap] = 255
    for i, image in enumerate(images):
        top, left = i // columns * high, i % columns * wide + (bar if i % columns >= lead else 0)
        tile = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + height * scale, left : left + width * scale] = tile
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def save_grid(
    uri: str,
    images: npt.NDArray[np.uint8],
    columns: int,
    text: dict[str, str],
    scale: int = 1,
    gap: int = 0,
    lead: int = 0,
) -> None:
    """As a PNG file: a path or s3:// URI. ``text``: for its text chunks."""
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image_grid(images, columns, scale, gap, lead).save(buffer, format="PNG", pnginfo=info)
    uris.write_bytes(uri, buffer.getvalue())
