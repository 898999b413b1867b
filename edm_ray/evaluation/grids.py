"""Grids of images for people, with what made them in the PNG's text chunks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
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


def rows_by_class(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], columns: int, class_names: Sequence[str]
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Images put in the order of their classes, every class on rows of its own with grey where it ends, and the name of
    each row's class."""
    missing = np.full_like(images[:1], GAP_LEVEL)
    parts, names = [], list[str]()
    for label in np.unique(labels).tolist():
        own = images[labels == label]
        parts += [own, *([missing] * (-len(own) % columns))]
        names += [class_names[label]] * -(-len(own) // columns)
    return np.concatenate(parts), names


def with_names(grid: Image.Image, names: Sequence[str], row_height: int) -> Image.Image:
    """The grid, and to the left of each row (of so many pixels, with its gap) a name."""
    font = ImageFont.load_default(size=min(14, max(9, row_height - 6)))
    texts = [name if len(name) <= 24 else f"{name[:23]}~" for name in names]
    width = 12 + round(max(font.getlength(text) for text in texts))
    sheet = Image.new("RGB", (width + grid.width, grid.height), "white")
    sheet.paste(grid, (width, 0))
    draw = ImageDraw.Draw(sheet)
    for row, text in enumerate(texts):
        draw.text((6, row * row_height + (row_height - 2) // 2), text, "black", font, anchor="lm")
    return sheet


def save_grid(
    uri: str,
    images: npt.NDArray[np.uint8],
    columns: int,
    text: dict[str, str],
    scale: int = 1,
    gap: int = 0,
    lead: int = 0,
    names: Sequence[str] = (),
) -> None:
    """As a PNG file: a path or s3:// URI. ``text``: for its text chunks. names: of the rows."""
    uris.write_bytes(
        uri, grid_png(image_grid(images, columns, scale, gap, lead), text, names, images.shape[2] * scale + gap)
    )


def grid_png(grid: Image.Image, text: Mapping[str, str], names: Sequence[str] = (), row_height: int = 0) -> bytes:
    """PNG with these text chunks, and names of the rows."""
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    (with_names(grid, names, row_height) if names else grid).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
