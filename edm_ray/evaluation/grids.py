"""Grids of images for people, with what made them in the PNG's text chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def image_grid(images: npt.NDArray[np.uint8], columns: int, scale: int = 1) -> Image.Image:
    """uint8 [N, C, H, W] -> one picture, row by row, pixels enlarged by a whole number; missing places stay black."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, channels, height, width), np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels).repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def save_grid(path: Path, images: npt.NDArray[np.uint8], columns: int, text: dict[str, str], scale: int = 1) -> None:
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    image_grid(images, columns, scale).save(path, pnginfo=info)
